"""Bring the roles and databases of a PostgreSQL cluster to what standard input asks for.

Standard input is a JSON object: ``roles`` and ``databases`` as in the role's argument specs, and
``check``, true when nothing may be changed. Standard output is a JSON object whose ``changes``
lists one sentence for each statement that was run, or would have been. Runs as the operating
system's user ``postgres`` over the unix socket.

The modules of community.postgresql are not used here because they cannot name a role or database
with a double quote in it twice (the second run fails, or makes it again), and because they take one
task for each of the seven kinds of thing that this brings about in one.
"""

import base64
import hashlib
import hmac
import json
import stringprep
import sys
import unicodedata

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import encrypt_password

PROHIBITED = (
    stringprep.in_table_a1,  # not assigned when RFC 3454 was written; emoji, for one
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


def saslprep(password):
    """Normalise a password as PostgreSQL's pg_saslprep does (RFC 4013), or return it as it is."""
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in password
        if stringprep.in_table_c12(char) or not stringprep.in_table_b1(char)
    )
    if not mapped or any(table(char) for char in mapped for table in PROHIBITED):
        return password
    right_to_left = [stringprep.in_table_d1(char) for char in mapped]
    mixed = any(map(stringprep.in_table_d2, mapped)) or not (right_to_left[0] and right_to_left[-1])
    if any(right_to_left) and mixed:
        return password
    return unicodedata.normalize("NFKC", mapped)


def password_is(verifier, password):
    """Tell whether the verifier that PostgreSQL keeps (RFC 5803) was made from this password."""
    if not (verifier or "").startswith("SCRAM-SHA-256$"):
        return False
    iterations, salt = verifier.split("$")[1].split(":")
    salted = hashlib.pbkdf2_hmac(
        "sha256", saslprep(password).encode(), base64.b64decode(salt), int(iterations)
    )
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    keys = f"{base64.b64encode(stored).decode()}:{base64.b64encode(server).decode()}"
    return hmac.compare_digest(verifier.split("$", 2)[2], keys)


class Cluster:
    """One connection at a time to the cluster, and the list of what was changed through it."""

    def __init__(self, check):
        self.check = check
        self.changes = []
        self.open("postgres")

    def open(self, database):
        """Connect to a database; statements take effect one by one.

        The search path keeps what a database's owner has put into its schemas from running as the
        superuser.
        """
        self.connection = psycopg2.connect(
            dbname=database, client_encoding="UTF8", options="-c search_path=pg_catalog"
        )
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


def setting_is(cluster, stored, value):
    """Tell whether pg_db_role_setting keeps this value: some settings' values as quoted names."""
    values = [str(x) for x in (value if isinstance(value, list) else [value])]
    quoted = [cluster.rows("SELECT quote_ident(%s)", x)[0][0] for x in values]
    return stored in (", ".join(values), ", ".join(quoted))


def ensure_role(cluster, role):
    """Make a role, or bring its login, password and settings to what is asked."""
    who, login = role["name"], role.get("login", True)
    attribute = sql.SQL("LOGIN" if login else "NOLOGIN")
    found = cluster.rows(
        "SELECT a.rolcanlogin, a.rolpassword, coalesce(s.setconfig, '{}')"
        " FROM pg_authid a"
        " LEFT JOIN pg_db_role_setting s ON s.setrole = a.oid AND s.setdatabase = 0"
        " WHERE a.rolname = %s",
        who,
    )
    if not found:
        cluster.change(f"create role {who}", "CREATE ROLE {r} {a}", r=name(who), a=attribute)
    has_login, has_password, has_settings = found[0] if found else (login, None, [])
    if has_login != login:
        cluster.change(f"change login of {who}", "ALTER ROLE {r} {a}", r=name(who), a=attribute)
    password = str(role.get("password") or "")  # YAML makes a number of one that is all digits
    if password and not password_is(has_password, password):
        # Encrypted here, so that the server's log never shows it.
        verifier = encrypt_password(password, who, cluster.connection, "scram-sha-256")
        cluster.change(
            f"set password of {who}",
            "ALTER ROLE {r} PASSWORD {p}",
            r=name(who),
            p=sql.Literal(verifier),
        )
    if has_password and not password:
        cluster.change(f"remove password of {who}", "ALTER ROLE {r} PASSWORD NULL", r=name(who))
    ensure_settings(cluster, who, dict(s.split("=", 1) for s in has_settings), role)


def ensure_settings(cluster, who, has, role):
    """Bring the settings that a role's sessions start with to what is asked, and to no others."""
    has = {key.lower(): value for key, value in has.items()}
    wanted = {key.lower(): value for key, value in (role.get("settings") or {}).items()}
    for key, value in wanted.items():
        if not setting_is(cluster, has.get(key), value):
            cluster.change(
                f"set {key} of {who}",
                "ALTER ROLE {r} SET {k} = {v}",
                r=name(who),
                k=sql.Identifier(*key.split(".")),
                v=literals(value),
            )
    for key in sorted(has.keys() - wanted.keys()):
        cluster.change(
            f"reset {key} of {who}",
            "ALTER ROLE {r} RESET {k}",
            r=name(who),
            k=sql.Identifier(*key.split(".")),
        )


def ensure_memberships(cluster, role):
    """Make a role a member of what is asked, and of nothing else."""
    who, wanted = role["name"], set(role.get("member_of") or [])
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
    found = cluster.rows("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", what)
    if not found:
        cluster.change(
            f"create database {what}",
            "CREATE DATABASE {d} OWNER {o} TEMPLATE template0 ENCODING 'UTF8'"
            " LC_COLLATE {l} LC_CTYPE {l}",
            d=name(what),
            o=name(owner),
            l=sql.Literal(locale),
        )
        if cluster.check:
            return
    elif found[0][0] != owner:
        cluster.change(
            f"give database {what} to {owner}",
            "ALTER DATABASE {d} OWNER TO {o}",
            d=name(what),
            o=name(owner),
        )
    writers = database.get("writers") or []
    grants = cluster.rows(
        "SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END,"
        " x.grantee = 0, x.privilege_type"
        " FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x"
        " WHERE d.datname = %s",
        what,
    )
    for grantee, public in sorted({grant[:2] for grant in grants}):
        if public or grantee not in (owner, *writers):
            cluster.change(
                f"close database {what} to {grantee}",
                "REVOKE ALL ON DATABASE {d} FROM {r}",
                d=name(what),
                r=sql.SQL("PUBLIC") if public else name(grantee),
            )
    for writer in writers:
        if not {(writer, False, "CONNECT"), (writer, False, "TEMPORARY")} <= set(grants):
            cluster.change(
                f"open database {what} to {writer}",
                "GRANT CONNECT, TEMPORARY ON DATABASE {d} TO {r}",
                d=name(what),
                r=name(writer),
            )


RELATIONS = (
    "SELECT c.oid, ARRAY[n.nspname, c.relname]::text[] FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE pg_get_userbyid(c.relowner) = %s"
    " AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind "
)
# What the writers may use: the word in SQL, the letter in pg_default_acl, the privileges, and a
# query for those that the owner has made, since a writer may join later than they.
KINDS = (
    (
        "SCHEMA",
        "n",
        ("USAGE",),
        "SELECT oid, ARRAY[nspname]::text[] FROM pg_namespace WHERE pg_get_userbyid(nspowner) = %s"
        " AND nspname !~ '^pg_' AND nspname <> 'information_schema'",
    ),
    (
        "TABLE",
        "r",
        ("SELECT", "INSERT", "UPDATE", "DELETE"),
        RELATIONS + "IN ('r', 'p', 'v', 'm', 'f')",
    ),
    ("SEQUENCE", "S", ("USAGE", "SELECT"), RELATIONS + "= 'S'"),
)


def ensure_inside(cluster, database):
    """Make the extensions, and let the writers use what the owner has made and will make."""
    what, owner = database["name"], database["owner"]
    has = {row[0] for row in cluster.rows("SELECT extname FROM pg_extension")}
    for extension in database.get("extensions") or []:
        if extension not in has:
            cluster.change(
                f"create extension {extension} in {what}",
                # It is made in the first schema of the search path.
                "SET search_path TO public; CREATE EXTENSION {e} CASCADE; RESET search_path",
                e=name(extension),
            )
    for writer in database.get("writers") or []:
        for kind in KINDS:
            ensure_writer(cluster, what, owner, writer, *kind)


def ensure_writer(cluster, what, owner, writer, word, letter, privileges, query):
    granted = cluster.rows(
        "SELECT x.privilege_type FROM pg_default_acl d, aclexplode(d.defaclacl) x"
        " WHERE pg_get_userbyid(d.defaclrole) = %s AND d.defaclnamespace = 0"
        " AND d.defaclobjtype = %s AND pg_get_userbyid(x.grantee) = %s",
        owner,
        letter,
        writer,
    )
    parts = {"p": sql.SQL(", ".join(privileges)), "w": name(writer)}
    if not set(privileges) <= {row[0] for row in granted}:
        cluster.change(
            f"let {writer} use each {word.lower()} that {owner} will make in {what}",
            "ALTER DEFAULT PRIVILEGES FOR ROLE {o} GRANT {p} ON " + word + "S TO {w}",
            o=name(owner),
            **parts,
        )
    holds = " AND ".join(f"has_{word.lower()}_privilege(r.oid, o.oid, '{p}')" for p in privileges)
    # Materialized, or PostgreSQL may ask about a table what can only be asked about a sequence.
    for (path,) in cluster.rows(
        f"WITH o (oid, path) AS MATERIALIZED ({query})"  # nosec B608
        f" SELECT o.path FROM o, pg_roles r WHERE r.rolname = %s AND NOT ({holds}) ORDER BY 1",
        owner,
        writer,
    ):
        cluster.change(
            f"let {writer} use {word.lower()} {'.'.join(path)} in {what}",
            "GRANT {p} ON " + word + " {t} TO {w}",
            t=sql.Identifier(*path),
            **parts,
        )


def main():
    wanted = json.load(sys.stdin)
    cluster = Cluster(wanted["check"])
    try:
        for role in wanted["roles"]:
            ensure_role(cluster, role)
        for role in wanted["roles"]:
            ensure_memberships(cluster, role)
        for database in wanted["databases"]:
            ensure_database(cluster, database)
        present = {row[0] for row in cluster.rows("SELECT datname FROM pg_database")}
        for database in wanted["databases"]:
            if database["name"] in present:
                cluster.open(database["name"])
                ensure_inside(cluster, database)
    except psycopg2.Error as error:
        sys.exit(f"PostgreSQL says: {error}")
    finally:
        json.dump({"changes": cluster.changes}, sys.stdout)


if __name__ == "__main__":
    main()
