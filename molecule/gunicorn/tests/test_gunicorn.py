"""Slots: what they serve, how they are rolled, and what they survive."""

import pytest

ROLL = "python3 /usr/local/lib/carafe/gunicorn-slots roll /etc/gunicorn/front/slots.json"


@pytest.mark.parametrize("app", ["front", "back"])
def test_both_slots_answer_on_the_apps_socket(load, slots, app):
    answer = load("true", app)
    assert answer["slots"] == sorted(slots(app))
    assert answer["failures"] == []


def test_slots_are_in_the_slice_of_their_user_where_there_is_one(host, slots):
    for pid in slots("front"):
        scope = "/carafe.slice/carafe-front.slice/carafe-supervised-"
        assert scope in host.check_output(f"cat /proc/{pid}/cgroup")
    for pid in slots("back"):
        group = host.check_output(f"cat /proc/{pid}/cgroup")
        assert group.endswith("/system.slice/supervisor.service")


def test_only_the_web_server_may_connect(host):
    socket = host.file("/run/front.sock")
    assert (socket.user, socket.group, socket.mode) == ("front", "www-data", 0o660)


def test_the_web_servers_word_on_the_scheme_is_believed(ask):
    assert ask()["scheme"] == "https"


# Of 500 MB, two workers of 120 MB fit each slot; one would need no memory stated.
def test_the_stated_memory_decides_the_number_of_workers(host, slots):
    assert [len(host.process.filter(ppid=str(pid))) for pid in slots("back")] == [2, 2]


def test_gunicorn_opens_no_socket_but_the_slots_private_ones(host):
    listening = {line.split()[4] for line in host.check_output("ss -Hlx").splitlines()}
    assert {path for path in listening if "gunicorn" in path} == {
        f"/var/lib/gunicorn-{app}/slot-{slot}.sock" for app in ("front", "back") for slot in (0, 1)
    }


def test_a_roll_with_nothing_to_do_does_nothing(roll, slots):
    before = slots()
    end = roll()
    assert (end.rc, end.stdout, end.stderr, slots()) == (0, "", "", before)


def test_a_dry_roll_says_what_it_would_restart_and_does_not(roll, slots, point):
    before = slots()
    point("two")
    end = roll("--check")
    assert end.stdout.count("would be restarted") == 2
    assert slots() == before


def test_a_new_release_costs_no_request(load, point, slots, ask):
    before, beside = slots(), slots("back")
    answer = load(f"ln -sfn two /srv/front/current && {ROLL}")
    assert (answer["status"], answer["failures"]) == (0, []), answer
    assert answer["releases"] == ["one", "two"]
    assert {ask(slot=slot)["release"] for slot in (0, 1)} == {"two"}
    assert not set(before) & set(slots())
    assert slots("back") == beside


def test_a_changed_environment_restarts_both_slots(host, roll, ask):
    host.check_output("echo GREETING=moin >/srv/front/environment")
    assert ask()["greeting"] == "hello"
    assert roll().stdout.count("restarted") == 2
    assert {ask(slot=slot)["greeting"] for slot in (0, 1)} == {"moin"}


def test_a_release_that_cannot_be_imported_gets_one_slot_only(load, slots, ask, point, roll):
    before = slots()
    answer = load(f"ln -sfn broken /srv/front/current && {ROLL}")
    assert answer["status"] != 0
    assert "No module named 'no_such_module'" in answer["output"]
    assert "slot 0 is not healthy" in answer["output"]
    assert (answer["failures"], answer["releases"]) == ([], ["one"])
    assert slots()[1] == before[1]
    # The next release, over the wreck of that one.
    healed = load(f"ln -sfn two /srv/front/current && {ROLL}")
    assert (healed["status"], healed["failures"]) == (0, []), healed
    assert {ask(slot=slot)["release"] for slot in (0, 1)} == {"two"}


@pytest.mark.parametrize("trouble", ["touch /srv/front/sick-two", "echo 20 >/srv/front/delay-two"])
def test_a_release_that_does_not_become_healthy_gets_one_slot_only(host, load, slots, ask, trouble):
    before = slots()
    host.check_output(trouble)
    answer = load(f"ln -sfn two /srv/front/current && {ROLL}")
    assert answer["status"] != 0
    assert "slot 0 is not healthy" in answer["output"]
    assert answer["failures"] == []
    assert slots()[1] == before[1]
    assert ask(slot=1)["release"] == "one"


def test_the_slot_that_serves_nothing_is_rolled_first(host, load):
    host.check_output("supervisorctl stop front:front_1")
    answer = load(f"ln -sfn two /srv/front/current && {ROLL}")
    assert (answer["status"], answer["failures"]) == (0, []), answer
    assert answer["output"].startswith("slot 1 restarted")


def test_two_rolls_at_a_time_restart_each_slot_once(load):
    answer = load(f"ln -sfn two /srv/front/current; {ROLL} & {ROLL} & wait")
    slots = [line.partition(" restarted")[0] for line in answer["output"].splitlines()]
    assert (slots, answer["failures"]) == (["slot 0", "slot 1"], [])


def test_a_module_imported_late_comes_from_the_release_that_was_started(point, ask, host, roll):
    host.check_output("supervisorctl restart front:front_0")
    assert roll().rc == 0
    point("two")
    assert ask("/lazy", slot=0)["lazy"] == "one"


@pytest.mark.parametrize("app", ["front", "back"])
def test_a_killed_slot_is_back(host, slots, load, roll, eventually, app):
    old = slots(app)[0]
    host.check_output("kill -9 %s", str(old))
    eventually(lambda: slots(app)[0] not in (0, old))
    eventually(lambda: load("true", app)["slots"] == sorted(slots(app)))
    assert (roll(app=app).stdout, load("true", app)["failures"]) == ("", [])


def test_a_killed_worker_is_back(host, slots, eventually, load):
    slot = slots()[0]
    worker = host.process.get(ppid=str(slot))
    host.check_output("kill -9 %s", str(worker.pid))
    eventually(lambda: slot in load("true")["slots"])
    assert slots()[0] == slot


def test_a_slot_serves_even_when_the_disk_is_full(host, slots, roll, load):
    folder = "/var/lib/gunicorn-front"
    # What supervisord's sandbox has mounted is its own.
    inside = "nsenter --target $(supervisorctl pid) --mount"
    host.check_output(f"{inside} mount -t tmpfs -o nr_inodes=1,mode=0777 tmpfs {folder}")
    try:
        host.check_output("supervisorctl restart front:front_0")
        assert slots()[0] in load("sleep 1")["slots"]
    finally:
        host.check_output(f"{inside} umount {folder}")
    assert roll().stdout.startswith("slot 0 restarted")


def test_a_roll_says_when_supervisord_does_not_run_the_app(host, roll):
    host.check_output(
        "cp -r /etc/gunicorn/front /etc/gunicorn/nobody"
        ' && sed -i \'s/"front"/"nobody"/\' /etc/gunicorn/nobody/slots.json'
    )
    try:
        end = roll(app="nobody")
        assert end.rc != 0
        assert "supervisord does not run nobody" in end.stderr
        assert "Traceback" not in end.stderr
    finally:
        host.check_output("rm -r /etc/gunicorn/nobody")


@pytest.mark.either_release
def test_what_pip_has_in_its_environment_arrives_and_is_roots_alone(host, converge, request):
    request.addfinalizer(converge)
    log = '/root/pip\'s "log" $HOME #1'
    changed, output = converge(gunicorn_install_environment={"PIP_LOG": log})
    assert changed == 2, output
    for venv in ("/srv/venv", "/srv/back/current/.venv"):
        file = host.file(f"{venv}/install.environment")
        assert (file.user, file.mode) == ("root", 0o600)
    assert "gunicorn" in host.check_output("cat %s", log)
    changed, output = converge()
    assert changed == 2, output
    assert "PIP_LOG" not in host.check_output("cat /srv/venv/install.environment")


def test_both_slots_are_back_after_a_restart_of_the_server(restart_server, load, eventually, slots):
    restart_server()
    eventually(lambda: load("true")["slots"] == sorted(slots()) and 0 not in slots())
    assert load("true")["failures"] == []
