"""Who is banned, from what and for how long; what later runs change, refuse and make up for."""

import itertools

import pytest

NGINX = {
    "name": "nginx-429",
    "log": "/var/log/nginx/access.log",
    "ports": [80, 443],
    "retries": 100,
    "within_seconds": 60,
}
WEB = ("nginx-401", "nginx-429")
BY_HAND = "[byhand]\nenabled = true\nfilter = sshd\nbackend = systemd\n"
OWN = "/etc/fail2ban/jail.d/carafe.local"
LENGTHS = """
import sqlite3, sys
bans = sqlite3.connect("file:/var/lib/fail2ban/fail2ban.sqlite3?mode=ro", uri=True)
query = "SELECT bantime FROM bans WHERE jail = 'nginx-429' AND ip = ? ORDER BY timeofban"
print(*(row[0] for row in bans.execute(query, sys.argv[1:])))
"""


@pytest.fixture(scope="module")
def role(converge):
    """Run the role with other values of some variables; what is installed stays."""
    return lambda **variables: converge(fail2ban_manage_packages=False, **variables)


@pytest.fixture(scope="module", autouse=True)
def bring_back(role, host):
    """Leave the server as converge.yml wants it, whatever a test has done to it."""
    yield
    host.check_output("cd /etc/fail2ban && rm -f jail.d/byhand.conf filter.d/wrong.conf")
    changed, output = role()
    assert changed >= 0, output


@pytest.fixture
def jails(host):
    def names():
        status = host.run("fail2ban-client status").stdout
        return set(status.rpartition("Jail list:")[2].replace(",", " ").split())

    return names


def explanation(output):
    return " ".join(output[output.rindex("[ERROR]") :].split())


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_who_guesses_logins_gets_no_connection_at_all(
    family, enemy, neighbour, guess, banned, reaches, eventually
):
    foe, friend = enemy[family], neighbour[family]
    assert reaches(foe, 22)

    def is_banned():
        guess(foe)
        return foe in banned().get("sshd", ())

    eventually(is_banned)
    assert not reaches(foe, 22)
    assert not reaches(foe, 80)
    assert reaches(friend, 22)


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_who_floods_nginx_is_kept_from_the_web_alone(
    family, enemy, neighbour, flood, banned, reaches, eventually
):
    foe, friend = enemy[family], neighbour[family]
    assert reaches(foe, 80)
    flood(foe)
    eventually(lambda: banned().get("nginx-429") == {foe})
    assert not reaches(foe, 80)
    assert reaches(foe, 22)
    assert reaches(friend, 80)


def test_who_guesses_the_password_of_a_site_is_kept_from_the_web(
    enemy, neighbour, flood, banned, reaches, eventually
):
    foe, friend = enemy["v4"], neighbour["v4"]
    # A browser that has not asked its user yet, a user who remembers it in time, and one who is in.
    flood(friend, 99, 401)
    flood(friend, 9, 401, user="ann")
    flood(friend, 99, 200, user="ann")
    flood(foe, 10, 401, user="- - [ann] 200")
    eventually(lambda: banned().get("nginx-401") == {foe})
    assert not reaches(foe, 80)
    assert reaches(foe, 22)
    assert reaches(friend, 80)


SWARMED = "fd98:0:0:1::/64"


def test_a_network_whose_addresses_take_turns_is_banned_as_one(
    swarm, stranger, flood, banned, reaches, eventually
):
    for foe in swarm[:-1]:
        flood(foe, 34)
    eventually(lambda: banned().get("nginx-429") == {SWARMED})
    assert not any(reaches(foe, 80) for foe in swarm)
    assert all(reaches(foe, 22) for foe in swarm)
    assert reaches(stranger, 80)


def test_guesses_from_the_addresses_of_a_network_add_up(
    swarm, stranger, guess, banned, reaches, eventually
):
    guesses = itertools.count()

    def is_banned():
        guess(swarm[next(guesses) % len(swarm)])
        return banned().get("sshd") == {SWARMED}

    eventually(is_banned)
    assert next(guesses) < 12, "20 where each address counts for itself"
    assert not any(reaches(foe, 22) for foe in swarm)
    assert reaches(stranger, 22)


@pytest.mark.either_release
@pytest.mark.parametrize("who", ["fd98::1:ffff:0:0:1", "fd98::/32"])
def test_the_ban_of_a_network_ends_by_any_of_its_names(
    host, swarm, flood, banned, reaches, eventually, who
):
    flood(swarm[0])
    eventually(lambda: banned().get("nginx-429") == {SWARMED})
    host.check_output("systemctl restart fail2ban")
    eventually(lambda: banned().get("nginx-429") == {SWARMED})
    host.check_output("fail2ban-client unban %s", who)
    eventually(lambda: not banned().get("nginx-429"))
    assert reaches(swarm[0], 80)
    # It is forgotten, too.
    host.check_output("systemctl restart fail2ban")
    flood(swarm[0], 99)
    flood("198.51.100.1")
    eventually(lambda: banned().get("nginx-429") == {"198.51.100.1"})


@pytest.mark.parametrize(
    "line",
    [
        {"user": "mallory] [01/Jan/2001:00:00:00 +0000"},
        {"user": "mallory [01/Jan/2001:00:00:00 +0000] "},
        {"user": "203.0.113.9 - - "},
        {"user": r"\x22GET / HTTP/1.1\x22 200"},
        {"request": r"GET /\x22 200 HTTP/1.1"},
        {"request": ""},
        {"request": r"\x16\x03\x01"},
    ],
)
def test_no_name_or_request_hides_a_flood(line, flood, banned, eventually, enemy):
    flood(enemy["v4"], **line)
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})


@pytest.mark.parametrize(
    "line",
    [
        {"count": 99},
        {"status": 200, "count": 300},
        {"status": 404, "request": "GET / 429 HTTP/1.1", "count": 300},
        {"status": 200, "request": r"GET /\x22 429 HTTP/1.1", "count": 300},
        {"status": 200, "user": r"\x22GET / HTTP/1.1\x22 429 ", "count": 300},
    ],
)
def test_who_keeps_to_the_limits_is_not_banned(line, flood, banned, eventually, enemy, neighbour):
    flood(enemy["v4"], **line)
    # Lines are read in their order: when this one is banned, the others have been read.
    flood(neighbour["v4"])
    eventually(lambda: banned().get("nginx-429") == {neighbour["v4"]})


def test_a_rotated_log_is_read_on(host, flood, banned, eventually, enemy, neighbour):
    flood(neighbour["v4"])
    eventually(lambda: banned().get("nginx-429") == {neighbour["v4"]})
    host.check_output("cd /var/log/nginx && mv access.log access.log.1 && touch access.log")
    flood(enemy["v4"])
    eventually(lambda: enemy["v4"] in banned()["nginx-429"])


def test_the_documented_command_ends_a_ban(host, flood, banned, reaches, eventually, enemy):
    flood(enemy["v4"])
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})
    host.check_output("fail2ban-client unban %s", enemy["v4"])
    eventually(lambda: reaches(enemy["v4"], 80))


def test_a_ban_outlives_a_reboot(restart_server, host, flood, banned, reaches, eventually, enemy):
    flood(enemy["v4"])
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})
    restart_server()
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})


def test_a_killed_fail2ban_is_back_with_its_bans(host, flood, banned, jails, eventually, enemy):
    flood(enemy["v4"])
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})
    host.check_output("kill -9 $(systemctl show -P MainPID fail2ban)")
    host.check_output("nft delete table inet f2b-table")
    eventually(lambda: jails() == {"sshd", *WEB})
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})


def test_bans_that_others_have_thrown_away_are_made_again(
    role, host, flood, banned, reaches, eventually, enemy
):
    flood(enemy["v4"])
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})
    host.check_output("nft delete table inet f2b-table")
    assert reaches(enemy["v4"], 80)
    changed, output = role()
    assert changed == 1, output
    eventually(lambda: not reaches(enemy["v4"], 80))
    changed, output = role()
    assert changed == 0, output


def test_networks_to_ignore_are_never_banned_and_who_is_banned_stays_so(
    role, flood, banned, eventually, enemy, neighbour
):
    flood(neighbour["v6"])
    eventually(lambda: banned().get("nginx-429") == {neighbour["v6"]})
    changed, output = role(fail2ban_ignore=["10.99.0.2/31"])
    assert changed == 1, output
    flood(enemy["v4"], 300)
    flood(enemy["v6"])
    eventually(lambda: banned().get("nginx-429") == {neighbour["v6"], enemy["v6"]})


def test_a_network_with_somebody_to_ignore_is_banned_by_address(
    role, swarm, flood, banned, reaches, eventually
):
    foe, friend, *_ = swarm
    changed, output = role(fail2ban_ignore=[friend])
    assert changed == 1, output
    flood(friend, 300)
    flood(foe)
    eventually(lambda: banned().get("nginx-429") == {foe})
    assert reaches(friend, 80)


# After those that need a ban to last: what it sets stays until another test sets it anew.
def test_each_ban_lasts_twice_as_long(role, host, flood, banned, eventually, enemy):
    changed, output = role(fail2ban_seconds=5)
    assert changed >= 0, output

    def lengths():
        # In its database, where a ban still is when it has ended.
        return host.check_output("python3 -c %s %s", LENGTHS, enemy["v4"]).split()

    flood(enemy["v4"])
    eventually(lambda: lengths() == ["5"])
    eventually(lambda: not banned().get("nginx-429"))
    flood(enemy["v4"])
    eventually(lambda: lengths() == ["5", "10"])


def test_the_tables_of_others_are_left_alone(role, host, flood, banned, eventually, enemy):
    host.check_output(
        "nft add table inet theirs;"
        " nft add chain inet theirs input '{ type filter hook input priority 0; }';"
        " nft add rule inet theirs input accept"
    )

    def others():
        tables = host.check_output("nft list tables").splitlines()
        return [line for line in tables if "f2b" not in line]

    before = others()
    changed, output = role(fail2ban_seconds=301)
    assert changed == 1, output
    flood(enemy["v4"])
    eventually(lambda: banned().get("nginx-429") == {enemy["v4"]})
    host.check_output("systemctl restart fail2ban")
    host.check_output("fail2ban-client unban --all")
    assert others() == before
    assert "accept" in host.check_output("nft list table inet theirs")
    host.check_output("nft delete table inet theirs")


def test_a_jail_without_its_log_waits_for_it(role, host, jails):
    host.check_output("mv /var/log/nginx/access.log /var/log/nginx/away")
    changed, output = role()
    assert changed >= 1, output
    without = jails()
    host.check_output("mv /var/log/nginx/away /var/log/nginx/access.log")
    assert without == {"sshd"}
    changed, output = role()
    assert changed == 1, output
    assert jails() == {"sshd", *WEB}


def test_a_log_that_is_taken_away_costs_no_other_jail(host, jails, eventually):
    host.check_output("mv /var/log/nginx/access.log /var/log/nginx/away")
    started = host.run("systemctl restart fail2ban")
    host.check_output("mv /var/log/nginx/away /var/log/nginx/access.log")
    assert started.rc == 0
    eventually(lambda: "sshd" in jails())


def test_a_jail_that_is_not_asked_for_ends_and_one_by_hand_is_left_alone(role, host, jails):
    host.check_output("echo %s >/etc/fail2ban/jail.d/byhand.conf", BY_HAND)
    changed, output = role(fail2ban_default_jails=[NGINX])
    assert changed == 1, output
    found = jails()
    host.check_output("rm /etc/fail2ban/jail.d/byhand.conf")
    assert found == {"nginx-429", "byhand"}
    changed, output = role()
    assert changed == 1, output
    assert jails() == {"sshd", *WEB}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("filter = nosuch", "Unable to read the filter 'nosuch'"),
        ("filter = sshd\nbackend = systemd\njournalmatch = nonsense", "Invalid match"),
        ("filter = wrong", "Unable to compile regular expression"),
        ("filter = sshd\nbackend = systemd\nignoreip = 10.0.0.0/99", "10.0.0.0/99"),
    ],
    ids=["filter", "journal", "regex", "network"],
)
def test_jails_are_tried_before_they_are_loaded(host, lines, reason):
    wrong = "[Definition]\nfailregex = ^(<ADDR>\n"
    host.check_output("printf %s >/etc/fail2ban/filter.d/wrong.conf", wrong)
    jail = f"[tried]\nenabled = true\n{lines}\n"
    host.check_output("{ cat %s; printf %s; } >/root/tried", OWN, jail)
    tried = host.run("/usr/bin/python3 /usr/local/lib/fail2ban-try.py /root/tried")
    assert tried.rc != 0
    assert reason in tried.stderr


def test_a_mistake_is_explained_and_fail2ban_stays_as_it_is(role, host, jails, eventually):
    before = host.check_output("sha256sum %s", OWN)
    changed, output = role(fail2ban_ignore=["10.0.0.0/99"])
    assert changed == -1
    assert "not an address, network or host name: 10.0.0.0/99" in explanation(output), output
    assert jails() == {"sshd", *WEB}
    assert host.check_output("sha256sum %s", OWN) == before
    assert not host.run("grep -r 10.0.0.0/99 /etc/carafe/fail2ban.d").stdout
    # What the failed run left on the disk must do for the next start.
    host.check_output("systemctl restart fail2ban")
    eventually(lambda: jails() == {"sshd", *WEB})


def test_two_inventories_add_to_each_other(role, host, jails):
    more = {"name": "blog", "filter": "sshd"}
    changed, output = role(fail2ban_owner="blog", fail2ban_jails=[more])
    assert changed == 1, output
    assert jails() == {"sshd", *WEB, "blog"}
    # The first one's next run undoes nothing, nor do its seconds.
    changed, output = role()
    assert changed == 0, output
    assert host.check_output("fail2ban-client get blog bantime") == "300"
    host.check_output("rm /etc/carafe/fail2ban.d/blog.json")
    changed, output = role()
    assert changed == 1, output
    assert jails() == {"sshd", *WEB}


def test_a_mistake_by_hand_is_not_loaded(host, jails, eventually):
    wrong = f"{BY_HAND}journalmatch = nonsense"
    host.check_output("echo %s >/etc/fail2ban/jail.d/byhand.conf", wrong)
    reloaded = host.run("systemctl reload fail2ban")
    host.check_output("rm /etc/fail2ban/jail.d/byhand.conf")
    assert reloaded.rc != 0
    assert jails() == {"sshd", *WEB}


def test_a_lost_reload_is_made_up_for(role, host):
    host.check_output("touch /etc/fail2ban/filter.d/nginx-429.conf")
    changed, output = role()
    assert changed == 1, output


def test_a_stopped_fail2ban_runs_again(role, host, jails, eventually):
    host.check_output("systemctl disable --now fail2ban")
    changed, output = role()
    assert changed == 1, output
    assert host.service("fail2ban").is_enabled
    eventually(lambda: jails() == {"sshd", *WEB})


def test_an_option_in_the_name_of_a_filter_arrives(role, host):
    changed, output = role(
        fail2ban_jails=[{"name": "sshd", "filter": "sshd[mode=aggressive]", "retries": 3}]
    )
    assert changed == 1, output
    assert host.check_output("fail2ban-client get sshd maxretry") == "3"
    assert "kex_exchange_identification" in host.check_output("fail2ban-client get sshd failregex")
