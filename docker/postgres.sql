-- Runs once, on the empty database folder: shopcrawl's own role and database, so that it never works as superuser.
\set password `cat /run/secrets/postgres_password`
CREATE ROLE shopcrawl LOGIN PASSWORD :'password';
CREATE DATABASE shopcrawl OWNER shopcrawl ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE shopcrawl FROM PUBLIC;
