"""Bring the roles and databases of a PostgreSQL cluster to what standard input asks for.

Standard input is a JSON object: ``roles`` and ``databases`` as in the role's argument specs, and
``check``, true when nothing may be changed. Standard output is a JSON object whose ``changes`` lists
one sentence for each statement that was run, or would have been. Runs as the operating system's
user ``postgres`` over the unix socket.

The modules of community.postgresql are not used here because they cannot name a role or database
with a double quote in it twice (the second run fails, or makes it again), and because they take one
task for each of the seven kinds of thing that this brings about in one.
"""

import base64
import hashlib
import hmac
import json
import os
import stringprep
import sys
import unicodedata

import psycopg2
from psycopg2 import sql

SCRAM_ITERATIONS = 4096  # PostgreSQL's default, scram_iterations


def saslprep(password):
    """Normalise a password as PostgreSQL's pg_saslprep does (RFC 4013), or return it as it is."""
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in password
        if not stringprep.in_table_b1(char)
    )
    normal = unicodedata.normalize("NFKC", mapped)
    prohibited = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
    )
    if not normal or any(table(char) for char in normal for table in prohibited):
        return password
    return normal


def scram_verifier(password, salt, iterations=SCRAM_ITERATIONS):
    """Return the text that PostgreSQL stores for a password (RFC 5803)."""
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(x).decode() for x in (salt, stored, server))
    return f"SCRAM-SHA-256${iterations}:{salt64}${stored64}:{server64}"


def password_is(stored, password):
    """Tell whether a stored verifier was made from this password."""
    if not stored or not stored.startswith("SCRAM-SHA-256$"):
        return False
    iterations, salt = stored.split("$")[1].split(":")
    return hmac.compare_digest(
        stored, scram_verifier(password, base64.b64decode(salt), int(iterations))
    )


class Cluster:
    """One connection at a time to the cluster, and the list of what was changed through it."""

    def __init__(self, check):
        self.check = check
        self.changes = []
        self.open("postgres")

    def open(self, database):
        """Connect to a database; statements take effect one by one."""
        self.connection = psycopg2.connect(dbname=database, client_encoding="UTF8")
        self.connection.autocommit = True
        self.cursor = self.connection.cursor()

    def rows(self, query, *values):
        self.cursor.execute(query, values)
        return self.cursor.fetchall()

    def change(self, sentence, template, **parts):
        """Run one statement, unless only checking; note what it does, never the secret in it."""
        self.changes.append(sentence)
        if not self.check:
            self.cursor.execute(sql.SQL(template).format(**parts))


def name(text):
    return sql.Identifier(text)


def literals(value):
    """Return a setting's value as SQL; a list becomes a list of literals, as search_path needs."""
    values = value if isinstance(value, list) else [value]
    return sql.SQL(", ").join(sql.Literal(str(x)) for x in values)


def stored_setting(cluster, value):
    """Return a setting's value as pg_db_role_setting keeps it."""
    if isinstance(value, list):
        return ", ".join(cluster.rows("SELECT quote_ident(%s)", str(x))[0][0] for x in value)
    return str(value)


def ensure_role(cluster, role):
    """Make a role, or bring its login, password, settings and memberships to what is asked."""
    who, login = role["name"], role.get("login", True)
    attribute = sql.SQL("LOGIN" if login else "NOLOGIN")
    found = cluster.rows(
        "SELECT a.rolcanlogin, a.rolpassword, coalesce(s.setconfig, '{}')"
        " FROM pg_authid a LEFT JOIN pg_db_role_setting s ON s.setrole = a.oid AND s.setdatabase = 0"
        " WHERE a.rolname = %s",
        who,
    )
    if not found:
        cluster.change(f"create role {who}", "CREATE ROLE {r} {a}", r=name(who), a=attribute)
    has_login, has_password, has_settings = found[0] if found else (login, None, [])
    if has_login != login:
        cluster.change(f"change login of {who}", "ALTER ROLE {r} {a}", r=name(who), a=attribute)
    password = role.get("password")
    if password and not password_is(has_password, password):
        verifier = scram_verifier(password, os.urandom(16))
        cluster.change(
            f"set password of {who}",
            "ALTER ROLE {r} PASSWORD {p}",
            r=name(who),
            p=sql.Literal(verifier),
        )
    if has_password and not password:
        cluster.change(f"remove password of {who}", "ALTER ROLE {r} PASSWORD NULL", r=name(who))
    ensure_settings(cluster, who, dict(s.split("=", 1) for s in has_settings), role)
    ensure_memberships(cluster, who, set(role.get("member_of") or []))


def ensure_settings(cluster, who, has, role):
    wanted = role.get("settings") or {}
    for key, value in wanted.items():
        if has.get(key) != stored_setting(cluster, value):
            cluster.change(
                f"set {key} of {who}",
                "ALTER ROLE {r} SET {k} = {v}",
                r=name(who),
                k=sql.Identifier(*key.split(".")),
                v=literals(value),
            )
    for key in has.keys() - wanted.keys():
        cluster.change(
            f"reset {key} of {who}",
            "ALTER ROLE {r} RESET {k}",
            r=name(who),
            k=sql.Identifier(*key.split(".")),
        )


def ensure_memberships(cluster, who, wanted):
    has = {
        row[0]
        for row in cluster.rows(
            "SELECT pg_get_userbyid(roleid) FROM pg_auth_members"
            " WHERE pg_get_userbyid(member) = %s",
            who,
        )
    }
    for group in sorted(wanted - has):
        cluster.change(
            f"make {who} a member of {group}", "GRANT {g} TO {r}", g=name(group), r=name(who)
        )
    for group in sorted(has - wanted):
        cluster.change(
            f"end membership of {who} in {group}",
            "REVOKE {g} FROM {r}",
            g=name(group),
            r=name(who),
        )


def ensure_database(cluster, database):
    """Make a database, and keep everybody out of it but its owner and writers."""
    what, owner = database["name"], database["owner"]
    locale = database.get("locale", "C.UTF-8")
    found = cluster.rows(
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", what
    )
    if not found:
        cluster.change(
            f"create database {what}",
            "CREATE DATABASE {d} OWNER {o} TEMPLATE template0 ENCODING 'UTF8'"
            " LC_COLLATE {l} LC_CTYPE {l}",
            d=name(what),
            o=name(owner),
            l=sql.Literal(locale),
        )
    elif found[0][0] != owner:
        cluster.change(
            f"give database {what} to {owner}",
            "ALTER DATABASE {d} OWNER TO {o}",
            d=name(what),
            o=name(owner),
        )
    grantees = {
        (row[0], row[1])
        for row in cluster.rows(
            "SELECT coalesce(pg_get_userbyid(nullif(x.grantee, 0)), ''), x.privilege_type"
            " FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x"
            " WHERE d.datname = %s",
            what,
        )
    }
    if not grantees or any(grantee == "" for grantee, _ in grantees):
        cluster.change(
            f"close database {what} to the public",
            "REVOKE ALL ON DATABASE {d} FROM PUBLIC",
            d=name(what),
        )
    for writer in database.get("writers") or []:
        if not {(writer, "CONNECT"), (writer, "TEMPORARY")} <= grantees:
            cluster.change(
                f"open database {what} to {writer}",
                "GRANT CONNECT, TEMPORARY ON DATABASE {d} TO {r}",
                d=name(what),
                r=name(writer),
            )


TABLE = ("SELECT", "INSERT", "UPDATE", "DELETE")
SEQUENCE = ("USAGE", "SELECT")


def ensure_inside(cluster, database):
    """Make the extensions, and let the writers use what the owner has made and will make."""
    what, owner = database["name"], database["owner"]
    has = {row[0] for row in cluster.rows("SELECT extname FROM pg_extension")}
    for extension in database.get("extensions") or []:
        if extension not in has:
            cluster.change(
                f"create extension {extension} in {what}",
                "CREATE EXTENSION {e} CASCADE",
                e=name(extension),
            )
    for writer in database.get("writers") or []:
        for kind, letter, privileges in (("TABLES", "r", TABLE), ("SEQUENCES", "S", SEQUENCE)):
            ensure_writer(cluster, what, owner, writer, (kind, letter, privileges))


def ensure_writer(cluster, what, owner, writer, kind):
    objects, letter, privileges = kind
    granted = {
        row[0]
        for row in cluster.rows(
            "SELECT x.privilege_type FROM pg_default_acl d, aclexplode(d.defaclacl) x"
            " WHERE pg_get_userbyid(d.defaclrole) = %s AND d.defaclnamespace = 0"
            " AND d.defaclobjtype = %s AND pg_get_userbyid(x.grantee) = %s",
            owner,
            letter,
            writer,
        )
    }
    parts = {"p": sql.SQL(", ".join(privileges)), "w": name(writer)}
    if not set(privileges) <= granted:
        cluster.change(
            f"let {writer} use the {objects.lower()} that {owner} will make in {what}",
            "ALTER DEFAULT PRIVILEGES FOR ROLE {o} GRANT {p} ON {k} TO {w}",
            o=name(owner),
            k=sql.SQL(objects),
            **parts,
        )
    holds = "has_sequence_privilege" if letter == "S" else "has_table_privilege"
    wanted = " AND ".join(f"{holds}(r.oid, c.oid, '{privilege}')" for privilege in privileges)
    # Existing objects too: a writer may join after the tables were made. The CASE keeps PostgreSQL
    # from asking about a table what can only be asked about a sequence.
    for schema, relation in cluster.rows(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,"
        " pg_roles r WHERE r.rolname = %s AND pg_get_userbyid(c.relowner) = %s"
        f" AND CASE WHEN c.relkind = ANY (%s) THEN NOT ({wanted}) ELSE false END ORDER BY 1, 2",
        writer,
        owner,
        ["S"] if letter == "S" else ["r", "p", "v", "f"],
    ):
        cluster.change(
            f"let {writer} use {schema}.{relation} in {what}",
            "GRANT {p} ON " + ("SEQUENCE" if letter == "S" else "TABLE") + " {t} TO {w}",
            t=sql.Identifier(schema, relation),
            **parts,
        )


def main():
    wanted = json.load(sys.stdin)
    cluster = Cluster(wanted["check"])
    try:
        for role in wanted["roles"]:
            ensure_role(cluster, role)
        for database in wanted["databases"]:
            ensure_database(cluster, database)
        present = {row[0] for row in cluster.rows("SELECT datname FROM pg_database")}
        for database in wanted["databases"]:
            if database["name"] in present:
                cluster.open(database["name"])
                ensure_inside(cluster, database)
    except psycopg2.Error as error:
        sys.exit(f"PostgreSQL says: {error}After: {cluster.changes or 'no change'}")
    json.dump({"changes": cluster.changes}, sys.stdout)


if __name__ == "__main__":
    main()
