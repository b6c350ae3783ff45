"""The Taobao Open Platform gateway with one method: a seller's warehouse."""
