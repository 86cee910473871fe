"""An instance for each app: what it lets whom do, what it keeps, and what an app cannot undo."""

import re
from collections.abc import Callable, Iterator

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host

SOCKET = "/run/valkey-{}/valkey.sock"
Ask = Callable[..., CommandResult]


@pytest.fixture
def ask(host: Host) -> Ask:
    """Give a command to an instance, as a user: ask("blog", "GET x", of="shop")."""
    found = host.check_output("ls /usr/bin/valkey-cli /usr/bin/redis-cli 2>/dev/null || true")

    def run(user: str, command: str, of: str = "") -> CommandResult:
        socket = SOCKET.format(of or user)
        return host.run(f"runuser -u {user} -- {found} -e -s {socket} {command}")

    return run


def test_each_app_has_its_own_keys(ask: Ask) -> None:
    for user in ("shop", "blog"):
        assert ask(user, f"SET whose {user}").stdout.strip() == "OK"
    assert [ask(x, "GET whose").stdout.strip() for x in ("shop", "blog")] == ["shop", "blog"]


def test_an_app_does_not_reach_that_of_another(ask: Ask) -> None:
    denied = ask("blog", "GET whose", of="shop")
    assert denied.rc != 0
    assert "Permission denied" in denied.stderr


def test_who_migrates_for_the_app_does(ask: Ask) -> None:
    assert ask("shop-deploy", "PING", of="shop").stdout.strip() == "PONG"


@pytest.fixture
def without_the_border(host: Host) -> Iterator[None]:
    """Folder and socket of the shop's instance as open as those of many a tutorial."""
    place = "/run/valkey-shop /run/valkey-shop/valkey.sock"
    host.check_output(f"chmod 777 {place}")
    yield
    host.check_output("chmod 750 /run/valkey-shop && chmod 660 /run/valkey-shop/valkey.sock")


@pytest.mark.usefixtures("without_the_border")
def test_it_is_the_border_that_keeps_them_apart(ask: Ask) -> None:
    ask("shop", "SET whose shop")
    assert ask("blog", "GET whose", of="shop").stdout.strip() == "shop"


def test_no_app_reads_what_another_keeps_on_the_disk(host: Host) -> None:
    host.check_output("test -s /var/lib/valkey-shop/appendonlydir/appendonly.aof.manifest")
    for user in ("blog", "shop-deploy"):
        denied = host.run(f"runuser -u {user} -- ls /var/lib/valkey-shop")
        assert "Permission denied" in denied.stderr


def test_it_is_not_on_the_network_nor_is_the_one_of_the_package(host: Host) -> None:
    assert ":6379" not in host.check_output("ss -ltn")
    name = "valkey-server" if host.exists("valkey-server") else "redis-server"
    assert not host.service(name).is_enabled
    assert not host.service(name).is_running


@pytest.mark.parametrize(
    "command",
    [
        *("CONFIG SET dir /tmp", "CONFIG GET '*'", "MODULE LOAD /tmp/x.so", "DEBUG SLEEP 0"),
        *("SHUTDOWN NOSAVE", "REPLICAOF 127.0.0.1 6379", "MONITOR", "ACL SETUSER x on +@all"),
        *("BGSAVE", "SLOWLOG GET", "MIGRATE 127.0.0.1 6379 x 0 10"),
        *("EVAL \"return redis.call('CONFIG', 'GET', '*')\" 0", "FAILOVER", "RESTORE x 0 y"),
    ],
)
def test_what_is_for_the_server_is_refused(ask: Ask, command: str) -> None:
    denied = ask("shop", command)
    assert denied.rc != 0
    assert re.search("NOPERM|not allowed|can't run this command", denied.stderr), denied


@pytest.mark.parametrize(
    "command",
    [
        *("INFO memory", "KEYS '*'", "SELECT 3", "CLIENT LIST", "CLIENT SETNAME x", "SCAN 0"),
        *("EVAL \"return redis.call('INCR', 'n')\" 0", "LPUSH rq:queue:x 1", "PUBLISH shop x"),
        *("XADD s '*' a b", "FLUSHDB", "SORT nothing", "ACL WHOAMI"),
    ],
)
def test_what_libraries_do_with_data_is_not(ask: Ask, command: str) -> None:
    done = ask("blog", command)
    assert done.rc == 0, done
    assert "NOPERM" not in done.stderr + done.stdout, done


def test_a_full_cache_throws_away_and_a_full_queue_refuses(ask: Ask) -> None:
    script = "for i = 1, 400 do redis.pcall('SET', KEYS[1] .. i, string.rep('x', 100000){}) end"

    def fill(user: str, name: str, more: str = "") -> None:
        """Write more than there is room for."""
        ask(user, f'EVAL "{script.format(more)}" 1 {name}')

    try:
        fill("blog", "entry")
        assert ask("blog", "SET one more").stdout.strip() == "OK"
        assert int(ask("blog", "DBSIZE").stdout) < 100
        # What is to expire goes, and what is not stays.
        ask("shop", "LPUSH queue first")
        fill("shop", "entry", ", 'EX', 1000")
        assert ask("shop", "LPUSH queue second").stdout.strip() == "2"
        for name in ("job", "another", "third"):
            fill("shop", name)
        full = ask("shop", "LPUSH queue third")
        assert "OOM" in full.stderr + full.stdout
        assert ask("shop", "LLEN queue").stdout.strip() == "2"
    finally:
        for user in ("shop", "blog"):
            ask(user, "FLUSHALL")


def test_it_comes_back_with_what_it_kept(host: Host, ask: Ask, eventually: Callable) -> None:
    ask("shop", "LPUSH kept job")
    ask("blog", "SET forgotten x")
    # It writes each second, and what it has written outlives it.
    eventually(lambda: "aof_buffer_length:0" in ask("shop", "INFO persistence").stdout)
    for user in ("shop", "blog"):
        host.check_output(f"kill -9 $(systemctl show --value --property=MainPID valkey@{user})")
    eventually(lambda: ask("shop", "LPOP kept").stdout.strip() == "job")
    eventually(lambda: ask("blog", "EXISTS forgotten").stdout.strip() == "0")


def test_its_exposure_is_low(host: Host) -> None:
    host.check_output("systemd-analyze security --no-pager --threshold=15 valkey@shop.service")


def test_the_sandbox_holds(host: Host) -> None:
    pid = host.check_output("systemctl show --value --property=MainPID valkey@shop")
    enter = f"nsenter --target {pid} --mount --setuid $(id -u shop) --setgid $(id -g shop)"
    for path in ("/usr", "/etc", "/tmp", "/var/tmp", "/var/lib/valkey-blog"):
        assert host.run(f"{enter} touch {path}/probe").rc != 0, path
    status = host.check_output(f"cat /proc/{pid}/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "Seccomp:\t2" in status


def test_a_run_brings_other_settings_and_makes_up_for_one_that_was_cut_short(
    converge: Callable[..., tuple[int, str]], host: Host, ask: Ask
) -> None:
    ask("shop", "LPUSH kept job")
    host.check_output("systemctl disable --now valkey@blog")
    try:
        changed, output = converge(shop_memory_mb=32)
        # Settings and restart of the one, start of the other.
        assert changed == 3, output
        assert "maxmemory:33554432" in ask("shop", "INFO memory").stdout
        assert ask("shop", "LPOP kept").stdout.strip() == "job"
        assert host.service("valkey@blog").is_enabled
        # As it would be had the run ended before the restart.
        host.check_output("touch /etc/valkey-instances/blog.conf")
        before = host.check_output("stat -c %i /run/valkey-blog/valkey.sock")
    finally:
        changed, output = converge()
    assert changed == 3, output
    assert host.check_output("stat -c %i /run/valkey-blog/valkey.sock") != before


def test_both_are_there_after_a_reboot(
    host: Host, ask: Ask, restart_server: Callable[[], None], eventually: Callable
) -> None:
    ask("shop", "LPUSH kept job")
    restart_server()
    eventually(lambda: ask("shop", "LPOP kept").stdout.strip() == "job")
    eventually(lambda: ask("blog", "PING").stdout.strip() == "PONG")
    assert ":6379" not in host.check_output("ss -ltn")
