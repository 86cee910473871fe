"""The data of another environment come masked, and nothing of that one is touched or left."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.newest_release

KEY = "a-key-that-opens-the-backups-of-this-test"
GUIDE = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"], "docs/how-to/backups.md").read_text()
MASKS = {
    "people.sql": re.search(r"```sql\n(.*?)```", GUIDE, re.DOTALL)[1],
    # Who looks at the live cluster meanwhile, be it as its superuser, finds nothing of it.
    "look.sql": r"""
        \! psql -XAtc "SELECT string_agg(datname, ' ' ORDER BY 1) FROM pg_database" >~postgres/seen
        \! stat -c '%U %a' ~postgres/*/.carafe-restore-shop >>~postgres/seen
        INSERT INTO api_tokens VALUES (session_user);
    """,
    "wrong.sql": "UPDATE public.people SET email = 'x';\nUPDATE public.nowhere SET x = 1;\n",
}
PRODUCTION = """
CREATE ROLE analyst; SET ROLE "shop-owner";
CREATE TABLE public.people (id int, name text, email text, phone text);
CREATE TABLE public.password_resets (token text);
CREATE TABLE public.api_tokens (token text);
GRANT SELECT ON public.people TO shop, analyst;
INSERT INTO public.people VALUES (7, 'Ada', 'ada@real.example', '0123');
INSERT INTO public.api_tokens VALUES ('real')
"""
STAGING = """
DROP OWNED BY analyst; DROP ROLE analyst; UPDATE public.people SET email = 'somebody@staging'
"""
EMAILS = "SELECT email FROM public.people"
DATABASES = "SELECT string_agg(datname, ' ' ORDER BY 1) FROM pg_database"


@pytest.fixture(scope="module")
def production(host, admin, job, called, converge, first_stored):
    """Have the server's backups be another environment's, which nobody can write, and its own new.

    Return the name under which that one has stored its database.
    """
    admin(PRODUCTION)
    host.check_output("runuser -u shop -- sh -c 'echo theirs >/srv/shop/shared/uploads/whose'")
    assert job("files-shop")["result"] == "ok"
    stanza = called("backup_jobs.backup_repository.setup()['stanza']")
    called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    # None that its timer has just begun may hang on what cannot be written.
    host.check_output("systemctl stop 'carafe-backup-*.timer' carafe-backup-files-shop")
    host.check_output("mkdir /staging && mount -o remount,ro /backup")
    changed, said = converge(backup_repository="/staging", backup_key="a-key-of-staging-s-own-here")
    assert changed > 0, said
    first_stored()
    admin(STAGING)
    host.check_output("runuser -u shop -- sh -c 'echo ours >/srv/shop/shared/uploads/whose'")
    return stanza


@pytest.fixture(scope="module")
def key_files(host):
    """Return what has the key of the other backups; before the copy what tests have left."""
    grep = "grep -rlF %s /etc /home /opt /root /run /srv /tmp /usr /var"
    return lambda: set(host.run(grep, KEY).stdout.split())


@pytest.fixture(scope="module")
def key_files_before(production, key_files):
    return key_files()


@pytest.fixture(scope="module")
def copy(host, production, key_files_before, tmp_path_factory):
    """Run the playbook, with the inventories of both environments."""
    project, name = tmp_path_factory.mktemp("project"), host.check_output("hostname")
    inventory = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())
    shared = {
        **{"app_name": "shop", "stack_database": "postgresql", "app_shared": ["uploads"]},
        "backup_source_server": production,
    }
    environments = {
        "prod": {"backup_repository": "/backup", "backup_key": KEY},
        "staging": {
            **{"backup_repository": "/staging", "backup_key": "a-key-of-staging-s-own-here"},
            "backup_copies_from": ["prod"],
        },
    }
    for environment, variables in environments.items():
        path = project / "inventory" / environment / "hosts.yml"
        path.parent.mkdir(parents=True)
        hosts = {"hosts": {name: inventory["all"]["hosts"][name] | shared | variables}}
        path.write_text(yaml.safe_dump({"db": hosts, "app": hosts}))
    for mask, text in MASKS.items():
        (project / mask).write_text(text)

    def run(*masks, to="staging", **variables):
        done = subprocess.run(
            [
                *(
                    "ansible-playbook",
                    "--extra-vars",
                    json.dumps({"backup_masks": masks} | variables),
                ),
                *("--inventory", project / "inventory" / to),
                Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "playbooks/copy_data.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        return done.returncode == 0, " ".join((done.stdout + done.stderr).split())

    return run


def test_nothing_is_copied_to_who_does_not_take_it(host, copy):
    done, said = copy("people.sql", to="prod", copy_from="staging", restore_confirm="shop")
    assert not done
    assert "does not take the data of staging" in said
    assert host.run("ls /run/carafe-backup-source /var/lib/carafe/backup/restoring-*").rc != 0


def test_a_mask_that_fails_lets_nothing_in(host, admin, copy):
    done, said = copy("wrong.sql", copy_from="prod", restore_confirm="shop")
    assert not done
    assert "The mask wrong.sql fails in line 2, SQLSTATE 42P01" in said
    assert "run the same command again" in said
    assert admin(EMAILS) == "somebody@staging"
    assert "restoring" not in admin(DATABASES)
    assert host.run("ls -d /run/carafe-backup-source/* /var/lib/postgresql/*/.carafe-*/*").rc != 0


def test_what_comes_is_masked_and_what_it_replaces_is_kept(host, admin, copy, production):
    """From backups that nobody can write: no lock, no WAL, and no cluster of another one's."""
    before = admin(DATABASES)
    done, said = copy("people.sql", "look.sql", copy_from="prod", restore_confirm="shop")
    assert done, said
    assert f"the data of prod, {production}, masked by people.sql, look.sql" in said
    assert host.file("/var/lib/postgresql/seen").content_string == f"{before}\npostgres 700\n"
    assert admin("TABLE public.people") == "7|Person 7|person7@example.com|"
    assert admin("TABLE public.api_tokens") == "shop-owner"
    (kept,) = set(admin(DATABASES).split()) - set(before.split())
    assert admin(EMAILS, kept) == "somebody@staging"
    # What the app may do came along; of who is not here nothing is left.
    host.check_output("runuser -u shop -- psql -Xc %s shop", EMAILS)
    assert admin("SELECT count(*) FROM pg_roles WHERE rolname ~ 'analyst|restoring'") == "0"
    whose = host.file("/srv/shop/shared/uploads/whose")
    assert (whose.content_string, whose.user) == ("theirs\n", "shop")


def test_nothing_that_opens_the_other_backups_is_left(copy, key_files, key_files_before):
    assert key_files() <= key_files_before
    assert "/etc/pgbackrest/pgbackrest.conf" not in key_files_before


def test_it_stores_where_it_did(host, admin, called, copy):
    admin("INSERT INTO public.api_tokens VALUES ('written since')")
    name = called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    assert host.run(f"ls /staging/pgbackrest/archive/*/*/*/{name}-*").rc == 0


def test_who_leaves_takes_all_but_what_is_stored(host, playbook, copy):
    done, said = playbook("remove")
    assert done, said
    assert host.check_output("ls /etc/systemd/system").count("carafe-backup") == 0
    assert host.run("ls /etc/carafe/backup /etc/pgbackrest/pgbackrest.conf").rc != 0
    assert host.run("ls /backup/files/shop/config /backup/pgbackrest/backup").rc == 0
    assert "changed=0" in playbook("remove")[1]
