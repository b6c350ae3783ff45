"""Calls to the Taobao Open Platform whose signatures are known: two published ones, and computed variations of them."""

PUBLISHED = {
    "method": "taobao.item.seller.get",
    "app_key": "12345678",
    "session": "test",
    "timestamp": "2016-01-01 12:00:00",
    "format": "json",
    "v": "2.0",
    "fields": "num_iid,title,nick,price,num",
    "num_iid": "11223344",
}
OLDER = {
    "method": "taobao.user.seller.get",
    "timestamp": "2013-05-06 13:52:03",
    "format": "xml",
    "app_key": "test",
    "v": "2.0",
    "fields": "nick",
    "session": "test",
}
CHINESE = {
    "method": "alibaba.tjb.items.inventory.get",
    "app_key": "12345678",
    "session": "test",
    "timestamp": "2016-01-01 12:00:00",
    "format": "json",
    "v": "2.0",
    "fields": "num_iid,title",
    "q": "项链",
    "page_no": "1",
    "page_size": "200",
    "order_by": "modified:asc",
    "simplify": "true",
}
CHINESE_SIGNS = {
    "md5": "9317FC5EECF636377CA79463C4DC40EF",
    "hmac": "87437D3781EAA0EC2194DA21A0387625",
    "hmac-sha256": "A7602135361B24B6E576C49993BD0C1EDD40057A4D1B8099354B30CAED1A8D6A",
}
SECRET = "helloworld"
SHA256 = "04DB15AD0774D5CFCE2C837DE43E3FCEA9011ED74F3038FB6AB5F3C4CEA119E8"
KNOWN = [
    (PUBLISHED, SECRET, "md5", "66987CB115214E59E6EC978214934FB8"),
    (OLDER, "test", "md5", "72CB4D809B375A54502C09360D879C64"),
    (PUBLISHED, SECRET, "hmac", "D56D7858309C31B6251083A874D48273"),
    (PUBLISHED, SECRET, "hmac-sha256", SHA256),
    *((CHINESE, SECRET, method, expected) for method, expected in CHINESE_SIGNS.items()),
]
"""Parameters without `sign_method`, secret, sign method, signature."""
