"""Bring the roles and databases of a PostgreSQL cluster to what is asked.

The modules of community.postgresql are not used here because they cannot name a role or database
with a double quote in it twice (the second run fails, or makes it again), and because they take one
task for each of the seven kinds of thing that this brings about in one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import stringprep
import unicodedata
from collections.abc import Iterable, Mapping

from .commands import Failure, run
from .module import entries, options, without_default
from .postgresql_server import Session, one_line, psycopg2, sql

# What the module takes, as roles/postgres/meta/argument_specs.yml has it.
ROLE = {
    "name": {"type": "str", "required": True},
    **without_default("password", no_log=True),
    **options(login=True, replication=False, connection_limit=-1, member_of=[], settings={}),
}
DATABASE = {
    "name": {"type": "str", "required": True},
    **without_default("owner"),
    **options(writers=[], readers=[], extensions=[], locale="C.UTF-8"),
    **without_default("icu_locale"),
}
# glibc's own.
ALWAYS_THERE = {"C", "POSIX", "C.UTF-8"}
ARGUMENTS = {"roles": entries(ROLE), "databases": entries(DATABASE)}
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


def literals(value):
    """Return a setting's value as SQL; a list becomes a list of literals, as search_path needs."""
    values = value if isinstance(value, list) else [value]
    return sql.SQL(", ").join(sql.Literal(str(x)) for x in values)


def setting_is(session, stored, value):
    """Tell whether pg_db_role_setting keeps this value: some settings' values as quoted names."""
    values = [str(x) for x in (value if isinstance(value, list) else [value])]
    quoted = [session.rows("SELECT quote_ident(%s)", x)[0][0] for x in values]
    return stored in (", ".join(values), ", ".join(quoted))


def ensure_role(session, role):
    """Make a role, or bring its login, password and settings to what is asked."""
    who, login, limit = role["name"], role["login"], role["connection_limit"]
    attribute = sql.SQL("LOGIN" if login else "NOLOGIN")
    found = session.rows(
        "SELECT a.rolcanlogin, a.rolreplication, a.rolconnlimit, a.rolpassword,"
        " coalesce(s.setconfig, '{}')"
        " FROM pg_authid a"
        " LEFT JOIN pg_db_role_setting s ON s.setrole = a.oid AND s.setdatabase = 0"
        " WHERE a.rolname = %s",
        who,
    )
    if not found:
        session.change(f"create role {who}", "CREATE ROLE {r} {a}", r=who, a=attribute)
    has_login, replicates, has_limit, has_password, has_settings = (
        found[0] if found else (login, False, -1, None, [])
    )
    if has_login != login:
        session.change(f"change login of {who}", "ALTER ROLE {r} {a}", r=who, a=attribute)
    # Given, and taken from nobody: somebody may have given it by hand.
    if role["replication"] and not replicates:
        session.change(f"let {who} replicate", "ALTER ROLE {r} REPLICATION", r=who)
    if has_limit != limit:
        session.change(
            f"change connection limit of {who}",
            "ALTER ROLE {r} CONNECTION LIMIT {n}",
            r=who,
            n=sql.Literal(limit),
        )
    password = role["password"]
    if password and not password_is(has_password, password):
        # Encrypted here, so that the server's log never shows it.
        verifier = psycopg2.extensions.encrypt_password(
            password, who, session.connection, "scram-sha-256"
        )
        session.change(
            f"set password of {who}", "ALTER ROLE {r} PASSWORD {p}", r=who, p=sql.Literal(verifier)
        )
    if has_password and not password:
        session.change(f"remove password of {who}", "ALTER ROLE {r} PASSWORD NULL", r=who)
    ensure_settings(session, who, dict(s.split("=", 1) for s in has_settings), role)


def ensure_settings(session, who, has, role):
    """Bring the settings that a role's sessions start with to what is asked, and to no others."""
    has = {key.lower(): value for key, value in has.items()}
    wanted = {key.lower(): value for key, value in (role["settings"] or {}).items()}
    for key, value in wanted.items():
        if not setting_is(session, has.get(key), value):
            session.change(
                f"set {key} of {who}",
                "ALTER ROLE {r} SET {k} = {v}",
                r=who,
                k=sql.Identifier(*key.split(".")),
                v=literals(value),
            )
    for key in sorted(has.keys() - wanted.keys()):
        session.change(
            f"reset {key} of {who}",
            "ALTER ROLE {r} RESET {k}",
            r=who,
            k=sql.Identifier(*key.split(".")),
        )


def ensure_memberships(session, role):
    """Make a role a member of what is asked, and of nothing else."""
    who, wanted = role["name"], set(role["member_of"] or [])
    has = {
        row[0]
        for row in session.rows(
            "SELECT pg_get_userbyid(roleid) FROM pg_auth_members"
            " WHERE pg_get_userbyid(member) = %s",
            who,
        )
    }
    for group in sorted(wanted - has):
        session.change(f"make {who} a member of {group}", "GRANT {g} TO {r}", g=group, r=who)
    for group in sorted(has - wanted):
        session.change(f"end membership of {who} in {group}", "REVOKE {g} FROM {r}", g=group, r=who)


def provider(icu_locale):
    if not icu_locale:
        return sql.SQL("")
    return sql.SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(icu_locale))


def refuse_locales(databases: Iterable[Mapping]) -> None:
    """PostgreSQL would say of a locale that the server lacks no more than that it is invalid."""
    wanted = {x["locale"]: x["name"] for x in databases}
    if wanted.keys() <= ALWAYS_THERE:
        return

    def plain(name: str) -> str:
        return name.lower().replace("-", "")

    has = {plain(x) for x in run("/usr/bin/locale", "-a").split()}
    for locale, name in wanted.items():
        if locale not in ALWAYS_THERE and plain(locale) not in has:
            language = locale.partition(".")[0].replace("_", "-")
            raise Failure(
                f"This server has no locale {locale!r}, which postgres_databases states for"
                f" {name!r}. State icu_locale: {language} in its place, for which PostgreSQL"
                " needs nothing of the server; or make it: the package locales, its line in"
                " /etc/locale.gen, locale-gen."
            )


def ensure_database(session, database):
    """Make a database, and keep everybody out of it but its owner, writers and readers."""
    what, owner = database["name"], database["owner"]
    found = session.rows("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", what)
    if not found:
        session.change(
            f"create database {what}",
            "CREATE DATABASE {d} OWNER {o} TEMPLATE template0 ENCODING 'UTF8'"
            " LC_COLLATE {l} LC_CTYPE {l} {p}",
            d=what,
            o=owner,
            l=sql.Literal(database["locale"]),
            p=provider(database["icu_locale"]),
        )
        if session.check:
            return
    elif found[0][0] != owner:
        session.change(
            f"give database {what} to {owner}", "ALTER DATABASE {d} OWNER TO {o}", d=what, o=owner
        )
    users = {x: ("CONNECT",) for x in database["readers"] or []}
    users |= {x: ("CONNECT", "TEMPORARY") for x in database["writers"] or []}
    grants = session.rows(
        "SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END,"
        " x.grantee = 0, x.privilege_type"
        " FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x"
        " WHERE d.datname = %s",
        what,
    )
    for grantee, public in sorted({grant[:2] for grant in grants}):
        if public or grantee not in (owner, *users):
            session.change(
                f"close database {what} to {grantee}",
                "REVOKE ALL ON DATABASE {d} FROM {r}",
                d=what,
                r=sql.SQL("PUBLIC") if public else grantee,
            )
    for user, privileges in users.items():
        if not {(user, False, privilege) for privilege in privileges} <= set(grants):
            session.change(
                f"open database {what} to {user}",
                "GRANT {p} ON DATABASE {d} TO {r}",
                p=sql.SQL(", ".join(privileges)),
                d=what,
                r=user,
            )


RELATIONS = (
    "SELECT c.oid, ARRAY[n.nspname, c.relname]::text[] FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE pg_get_userbyid(c.relowner) = %s"
    " AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind "
)
# What writers and readers may use: the word in SQL, the letter in pg_default_acl, and a query for
# those that the owner has made, since a writer may join later than they.
KINDS = (
    (
        "SCHEMA",
        "n",
        "SELECT oid, ARRAY[nspname]::text[] FROM pg_namespace WHERE pg_get_userbyid(nspowner) = %s"
        " AND nspname !~ '^pg_' AND nspname <> 'information_schema'",
    ),
    ("TABLE", "r", RELATIONS + "IN ('r', 'p', 'v', 'm', 'f')"),
    ("SEQUENCE", "S", RELATIONS + "= 'S'"),
)
READING = {"SCHEMA": ("USAGE",), "TABLE": ("SELECT",), "SEQUENCE": ("SELECT",)}
WRITING = {
    "SCHEMA": ("USAGE",),
    "TABLE": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"),
    "SEQUENCE": ("USAGE", "SELECT", "UPDATE"),
}
# REFRESH MATERIALIZED VIEW, VACUUM, ANALYZE, CLUSTER and REINDEX of what the owner has.
MAINTAIN_SINCE = 170000


def ensure_inside(session, database):
    """Make the extensions, and let the writers use what the owner has made and will make."""
    what, owner = database["name"], database["owner"]
    has = {row[0] for row in session.rows("SELECT extname FROM pg_extension")}
    for extension in database["extensions"] or []:
        if extension not in has:
            session.change(
                f"create extension {extension} in {what}",
                # It is made in the first schema of the search path.
                "SET search_path TO public; CREATE EXTENSION {e} CASCADE; RESET search_path",
                e=extension,
            )
    maintains = session.connection.server_version >= MAINTAIN_SINCE
    writing = WRITING | {"TABLE": (*WRITING["TABLE"], *["MAINTAIN"] * maintains)}
    writers = database["writers"] or []
    users = [(x, writing) for x in writers]
    users += [(x, READING) for x in database["readers"] or [] if x not in writers]
    for user, privileges in users:
        for word, letter, query in KINDS:
            ensure_user(session, what, owner, user, word, letter, privileges[word], query)


def ensure_user(session, what, owner, user, word, letter, privileges, query):
    granted = session.rows(
        "SELECT x.privilege_type FROM pg_default_acl d, aclexplode(d.defaclacl) x"
        " WHERE pg_get_userbyid(d.defaclrole) = %s AND d.defaclnamespace = 0"
        " AND d.defaclobjtype = %s AND pg_get_userbyid(x.grantee) = %s",
        owner,
        letter,
        user,
    )
    parts = {"p": sql.SQL(", ".join(privileges)), "u": user}
    if not set(privileges) <= {row[0] for row in granted}:
        session.change(
            f"let {user} use each {word.lower()} that {owner} will make in {what}",
            "ALTER DEFAULT PRIVILEGES FOR ROLE {o} GRANT {p} ON " + word + "S TO {u}",
            o=owner,
            **parts,
        )
    holds = " AND ".join(f"has_{word.lower()}_privilege(r.oid, o.oid, '{p}')" for p in privileges)
    # Materialized, or PostgreSQL may ask about a table what can only be asked about a sequence.
    for (path,) in session.rows(
        f"WITH o (oid, path) AS MATERIALIZED ({query})"  # nosec B608 # of constants alone
        f" SELECT o.path FROM o, pg_roles r WHERE r.rolname = %s AND NOT ({holds}) ORDER BY 1",
        owner,
        user,
    ):
        session.change(
            f"let {user} use {word.lower()} {'.'.join(path)} in {what}",
            "GRANT {p} ON " + word + " {t} TO {u}",
            t=sql.Identifier(*path),
            **parts,
        )


# What a database's owner has made in it must not run as the superuser. His sessions begin with the
# names of PostgreSQL alone, whatever search_path the owner gives to the database: of two such
# settings the role's wins. Temporary things come last, or they would be found first.
SUPERUSER_PATH = ["pg_catalog", "pg_temp"]


def ensure_borders(session):
    """Keep PostgreSQL's own databases for the superuser, and his sessions to its own names."""
    open_to_all = session.rows(
        "SELECT datname FROM pg_database d WHERE datname IN ('postgres', 'template1') AND EXISTS"
        " (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE grantee = 0)"
        " ORDER BY 1"
    )
    for (name,) in open_to_all:
        session.change(
            f"close database {name} to PUBLIC", "REVOKE ALL ON DATABASE {d} FROM PUBLIC", d=name
        )
    stored = session.rows(
        "SELECT s.setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
        " WHERE r.rolname = 'postgres' AND s.setdatabase = 0"
    )
    has = dict(setting.split("=", 1) for (settings,) in stored for setting in settings)
    if not setting_is(session, has.get("search_path"), SUPERUSER_PATH):
        session.change(
            "set search_path of postgres",
            "ALTER ROLE postgres SET search_path = {v}",
            v=literals(SUPERUSER_PATH),
        )


def ensure_watchers(session, roles):
    """Let who is to watch the server connect to the database that no app has.

    As one of pg_monitor, which no removal of a role has to take it back from. Whether somebody
    comes in is still for pg_hba.conf to say.
    """
    if not any("pg_monitor" in (role["member_of"] or []) for role in roles):
        return
    closed = session.rows(
        "SELECT 1 FROM pg_database d WHERE datname = 'postgres' AND NOT EXISTS"
        " (SELECT FROM aclexplode(datacl)"
        " WHERE grantee = 'pg_monitor'::regrole AND privilege_type = 'CONNECT')"
    )
    if closed:
        session.change(
            "open database postgres to pg_monitor",
            "GRANT CONNECT ON DATABASE {d} TO {r}",
            d="postgres",
            r="pg_monitor",
        )


def ensure(session: Session, roles: list[Mapping], databases: list[Mapping]) -> None:
    """Make what is missing and mend what differs; what is not named is left alone."""
    for database in databases:
        if not database["owner"]:
            raise Failure(
                f"The database {database['name']!r} has no owner. Add one to its entry in"
                " postgres_databases in group_vars and run the playbook again."
            )
    refuse_locales(databases)
    try:
        ensure_borders(session)
        for role in roles:
            ensure_role(session, role)
        for role in roles:
            ensure_memberships(session, role)
        ensure_watchers(session, roles)
        for database in databases:
            ensure_database(session, database)
        present = {row[0] for row in session.rows("SELECT datname FROM pg_database")}
        for database in databases:
            if database["name"] in present:
                session.open(database["name"])
                ensure_inside(session, database)
    except psycopg2.Error as error:
        raise Failure(
            f"PostgreSQL says: {one_line(error)}. Correct postgres_roles or postgres_databases in"
            " group_vars and run the playbook again."
        ) from None


def on_a_bare_server(roles: Iterable[Mapping], databases: Iterable[Mapping]) -> list[str]:
    """Return what ensure() would do first of all where there is no cluster yet."""
    return [
        *(f"create role {role['name']}" for role in roles),
        *(f"create database {database['name']}" for database in databases),
    ]
