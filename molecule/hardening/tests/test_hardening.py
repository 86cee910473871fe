"""What a server does by itself, and what later runs change, refuse and make up for."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

VARIABLES = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())[0]["vars"]
SYSCTL = {
    "net.ipv4.conf.all.rp_filter": "1",
    "net.ipv4.conf.eth0.rp_filter": "1",
    "net.ipv4.conf.eth0.log_martians": "1",
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.default.accept_redirects": "0",
    "net.ipv4.conf.eth0.accept_redirects": "0",
    "net.ipv4.conf.eth0.send_redirects": "0",
    "net.ipv4.conf.eth0.accept_source_route": "0",
    "net.ipv6.conf.default.accept_redirects": "0",
    "net.ipv6.conf.eth0.accept_redirects": "0",
    "net.ipv4.tcp_syncookies": "1",
    # From hardening_sysctl: one more, and one instead of the role's own.
    "net.ipv4.tcp_keepalive_time": "600",
    "net.core.somaxconn": "8192",
}


@pytest.fixture
def apt(host):
    """Tell what apt makes of all its configuration, as lines `name "value";` below a name."""
    return lambda name: host.check_output(f"apt-config dump {name}").splitlines()


@pytest.fixture
def sysctl(host):
    return lambda name: host.check_output("sysctl -n %s", name)


@pytest.fixture(scope="module", autouse=True)
def bring_back(converge):
    """Leave the server as converge.yml wants it, whatever a test has done to it."""
    yield
    changed, output = converge()
    assert changed >= 0, output


def explanation(output):
    return " ".join(output[output.rindex("[ERROR]") :].split())


def test_only_security_updates_are_installed_by_night(host):
    output = host.run("unattended-upgrade --dry-run --debug")
    assert output.rc == 0, output.stderr
    allowed = re.search(r"Allowed origins are: (.*)", output.stdout + output.stderr)[1]
    codename = host.check_output("sh -c '. /etc/os-release; echo $VERSION_CODENAME'")
    assert allowed == f"origin=Debian,codename={codename}-security,label=Debian-Security"


@pytest.mark.parametrize("timer", ["apt-daily.timer", "apt-daily-upgrade.timer"])
def test_it_happens_by_itself(host, timer):
    assert host.service(timer).is_enabled
    assert host.service(timer).is_running


def test_a_changed_configuration_holds_no_upgrade_up(host):
    ask = (
        "import importlib.machinery as m, importlib.util as u;"
        "l = m.SourceFileLoader('uu', '/usr/bin/unattended-upgrade');"
        "uu = u.module_from_spec(u.spec_from_loader('uu', l)); l.exec_module(uu);"
        "import apt_pkg; apt_pkg.init_config(); print(uu.dpkg_conffile_prompt())"
    )
    assert host.check_output("python3 -c %s", ask).splitlines()[-1] == "False"


# The second is a window of tmux.
@pytest.mark.parametrize(("tmux", "seconds"), [("", "3600"), ("/tmp/tmux-0/default,1,0", "")])
def test_a_forgotten_shell_ends(host, tmux, seconds):
    assert host.check_output("TMUX=%s bash -lc 'echo $TMOUT'", tmux) == seconds


def test_the_server_never_reboots_by_itself_unless_asked_to(apt):
    assert apt("Unattended-Upgrade::Automatic-Reboot") == [
        'Unattended-Upgrade::Automatic-Reboot "false";'
    ]
    assert not apt("Unattended-Upgrade::Automatic-Reboot-Time")


def test_a_time_turns_reboot_and_restarts_on_and_origins_replace_those_of_debian(
    host, apt, converge
):
    origins = ["origin=Debian,codename=${distro_codename}", "site=apt.example.com"]
    changed, output = converge(
        hardening_reboot_time="03:30",
        hardening_restart_time="04:30",
        hardening_upgrade_origins=origins,
    )
    assert changed == 1, output
    assert host.service("restart-upgraded.timer").is_enabled
    timer = "systemctl show --property=TimersCalendar --value restart-upgraded.timer"
    assert "*-*-* 04:30:00" in host.check_output(timer)
    host.check_output("systemctl start restart-upgraded")
    assert apt("Unattended-Upgrade::Automatic-Reboot") == [
        'Unattended-Upgrade::Automatic-Reboot "true";'
    ]
    assert apt("Unattended-Upgrade::Automatic-Reboot-Time") == [
        'Unattended-Upgrade::Automatic-Reboot-Time "03:30";'
    ]
    lines = apt("Unattended-Upgrade::Origins-Pattern")
    assert [line.split('"')[1] for line in lines[1:]] == origins
    changed, output = converge(hardening_reboot_time="03:30", hardening_upgrade_origins=origins)
    assert changed == 1, output
    assert not host.file("/etc/systemd/system/restart-upgraded.timer").exists
    assert host.run("systemctl is-active restart-upgraded.timer").stdout.strip() == "inactive"


def test_origins_that_apt_could_not_read_are_refused(apt, converge):
    before = apt("Unattended-Upgrade")
    changed, output = converge(hardening_upgrade_origins=['"; }; {'])
    assert changed == -1
    assert "hardening_upgrade_origins is what apt cannot read" in explanation(output), output
    assert apt("Unattended-Upgrade") == before


@pytest.mark.parametrize(("name", "value"), SYSCTL.items())
def test_a_kernel_setting_is_in_force(sysctl, name, value):
    assert sysctl(name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/io_uring_disabled", "2"),
        ("dev/tty/legacy_tiocsti", "0"),
    ],
)
def test_what_users_could_attack_the_kernel_by_is_closed_at_boot(host, name, value):
    found = host.check_output("/lib/systemd/systemd-sysctl --cat-config")
    # A container does not set it, and says so.
    wanted = [x for x in found.splitlines() if name.replace("/", ".") in x and x[0] != "#"]
    assert wanted == [f"-{name.replace('/', '.')} = {value}"]


def test_what_was_undone_by_hand_or_cut_short_is_made_up_for(host, sysctl, converge):
    journald = host.check_output("systemctl show -P MainPID systemd-journald")
    host.check_output("sysctl -w net.ipv4.conf.eth0.accept_redirects=1 net.core.somaxconn=100")
    host.check_output("touch /etc/systemd/journald.conf.d/50-carafe.conf")
    host.check_output("systemctl disable --now apt-daily-upgrade.timer")
    host.check_output("systemctl disable systemd-timesyncd")
    changed, output = converge()
    assert changed >= 1, output
    told = " ".join(output.split())
    for done in (
        "net.core.somaxconn = 8192",
        "restarted journald",
        "started apt-daily-upgrade.timer",
        "started systemd-timesyncd.service",
    ):
        assert done in told
    assert sysctl("net.ipv4.conf.eth0.accept_redirects") == "0"
    assert sysctl("net.core.somaxconn") == "8192"
    assert host.check_output("systemctl show -P MainPID systemd-journald") != journald
    assert host.service("apt-daily-upgrade.timer").is_enabled
    assert host.service("apt-daily-upgrade.timer").is_running
    assert host.service("systemd-timesyncd").is_enabled
    changed, output = converge()
    assert changed == 0, output


def test_two_inventories_add_to_each_other(host, sysctl, converge):
    more = {"net.ipv4.tcp_keepalive_time": 600, "net.ipv4.tcp_fin_timeout": 30}
    changed, output = converge(hardening_owner="blog", hardening_sysctl=more)
    assert changed == 1, output
    # The first one's next run undoes nothing.
    changed, output = converge()
    assert changed == 0, output
    assert (sysctl("net.ipv4.tcp_fin_timeout"), sysctl("net.core.somaxconn")) == ("30", "8192")
    host.check_output("rm /etc/carafe/hardening.d/blog.json")


@pytest.fixture
def by_others(host, sysctl):
    """Settings that are not the role's: those of another file, and what Docker and SLAAC need."""
    file = "/etc/sysctl.d/99-zz.conf"
    names = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.eth0.accept_ra"]
    before = {name: sysctl(name) for name in names}
    wanted = {name: "0" if value != "0" else "1" for name, value in before.items()}
    host.check_output(f"echo 'net.ipv4.conf.all.log_martians = 0' >{file}; sysctl -qp {file}")
    for name, value in wanted.items():
        host.check_output("sysctl -w %s", f"{name}={value}")
    yield wanted | {"net.ipv4.conf.all.log_martians": "0"}
    host.check_output(f"rm {file}")
    for name, value in before.items():
        host.check_output("sysctl -w %s", f"{name}={value}")


def test_files_of_others_have_the_last_word_and_docker_and_slaac_what_they_need(
    by_others, sysctl, converge
):
    changed, output = converge()
    # Some settings of the role follow from these, and are set right again.
    assert changed >= 0, output
    assert {name: sysctl(name) for name in by_others} == by_others


def test_a_setting_that_the_kernel_does_not_know_is_said_and_no_failure(converge):
    variables = {"hardening_sysctl": VARIABLES["hardening_sysctl"] | {"net.ipv4.no_such": 1}}
    changed, output = converge(**variables)
    assert changed >= 1, output
    assert "net.ipv4.no_such: this kernel has no such setting" in " ".join(output.split())
    changed, output = converge(**variables)
    assert changed == 0, output
    converge()


def test_the_journal_has_a_limit_on_the_disk(host):
    said = host.check_output("journalctl --boot --output cat --unit systemd-journald")
    sizes = re.findall(r"System Journal \(/var/log/journal/.* max ([^,]*),", said)
    assert float(sizes[-1].removesuffix("M")) == 500


def test_the_time_is_kept_where_the_server_may_set_it(host):
    unit = host.service("systemd-timesyncd")
    assert unit.is_enabled
    contained = host.run("systemd-detect-virt --container --quiet").rc == 0
    assert unit.is_running != contained


def test_chrony_is_not_fought(host, converge):
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chrony")
    changed, output = converge()
    kept = host.package("chrony").is_installed, host.package("systemd-timesyncd").is_installed
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get -qq purge -y chrony")
    assert changed == 0, output
    assert kept == (True, False)


def test_a_server_without_anything_that_keeps_the_time_gets_it(host, converge):
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get -qq purge -y systemd-timesyncd")
    changed, output = converge()
    assert changed >= 1, output
    assert host.service("systemd-timesyncd").is_enabled


@pytest.fixture
def own_name(host):
    """Molecule's name for the server, by which its runs find it: it has it back at the end."""
    name = host.check_output("hostname")
    yield name
    host.check_output("hostname %s", name)


def test_time_zone_and_host_name_are_as_asked(host, converge, own_name):
    changed, output = converge(
        hardening_timezone="Europe/Berlin", hardening_hostname="shop.example.com"
    )
    now = host.check_output("hostname")
    host.check_output("hostname %s", own_name)
    assert changed == 1, output
    assert host.check_output("date -d 2025-01-01 +%Z") == "CET"
    assert now == "shop.example.com"
    assert host.check_output("cat /etc/hostname") == now
    assert re.search(
        r"(?m)^127\.0\.1\.1 shop\.example\.com shop$", host.file("/etc/hosts").content_string
    )


def test_a_time_zone_that_is_nobody_s_and_a_host_name_that_holds_are_left_alone(
    host, converge, own_name
):
    host.check_output("timedatectl set-timezone Europe/Berlin")
    variables = {"hardening_timezone": "", "hardening_hostname": own_name}
    changed, output = converge(**variables)
    assert changed >= 0, output
    changed, output = converge(**variables)
    assert changed == 0, output
    assert host.check_output("date -d 2025-01-01 +%Z") == "CET"
    changed, output = converge()
    assert changed == 1, output
    assert host.check_output("date -d 2025-01-01 +%Z") == "UTC"


# A package whose installation waits, so that it can be cut short.
SLOW = """
mkdir -p /root/slow/DEBIAN /etc/apt/sources.list.d
printf '%s\\n' 'Package: carafe-slow' 'Version: 1' 'Architecture: all' 'Maintainer: x <x@x.x>' \
  'Description: takes its time' >/root/slow/DEBIAN/control
printf '%s\\n' '#!/bin/sh' 'test -e /root/quick || { touch /root/started; sleep 60; }' \
  >/root/slow/DEBIAN/postinst
chmod 755 /root/slow/DEBIAN/postinst
mkdir -p /root/repository && cd /root/repository
dpkg-deb --build --root-owner-group /root/slow . >/dev/null
{ dpkg-deb --field carafe-slow_1_all.deb
  echo "Filename: ./carafe-slow_1_all.deb"
  echo "Size: $(stat -c %s carafe-slow_1_all.deb)"
  echo "SHA256: $(sha256sum carafe-slow_1_all.deb | cut -d' ' -f1)"; } >Packages
echo 'deb [trusted=yes] copy:/root/repository ./' >/etc/apt/sources.list.d/slow.list
rm -f /root/quick /root/started
"""
# As when the server loses its power: all that installs ends at once.
CUT = """
apt=$(pgrep -x apt-get | head -n 1)
kill -9 $(ps -o ppid= -p $apt) $apt $(pgrep -x dpkg) $(pgrep -f 'info/[c]arafe-slow.postinst')
touch /root/quick
"""


@pytest.fixture
def slow(host):
    """A package that takes a minute to install, until it is cut short for the first time."""
    host.check_output("sh -ec %s", SLOW)
    yield ["unattended-upgrades", "carafe-slow"]
    host.run("apt-get -qq purge -y carafe-slow")
    host.check_output("rm -rf /root/slow /root/repository /etc/apt/sources.list.d/slow.list")


@pytest.mark.each_release
def test_a_run_cut_short_in_the_midst_of_apt_heals_by_the_same_command(
    host, converge, eventually, slow, monkeypatch
):
    # Mitogen's own process would be among those that are killed.
    monkeypatch.setenv("ANSIBLE_STRATEGY", "linear")
    converge()
    variables = {"hardening_packages": slow}
    with ThreadPoolExecutor() as pool:
        run = pool.submit(converge, **variables)
        eventually(lambda: host.file("/root/started").exists, seconds=300)
        assert host.run("/usr/sbin/policy-rc.d nginx start").rc == 101
        host.check_output("sh -c %s", CUT)
        changed, output = run.result()
    assert changed == -1, output
    assert host.check_output("dpkg-query -W -f '${db:Status-Status}' carafe-slow") != "installed"
    # Nothing is held by what is left.
    assert host.run("test ! -e /usr/sbin/policy-rc.d || /usr/sbin/policy-rc.d nginx start").rc == 0
    changed, output = converge(**variables)
    assert changed == 1, output
    assert host.package("carafe-slow").is_installed
    assert not host.file("/usr/sbin/policy-rc.d").exists
    changed, output = converge(**variables)
    assert changed == 0, output


def test_users_leave_no_core_dumps(host):
    assert host.check_output("su - deploy -c 'ulimit -Hc'") == "0"


def test_all_of_it_outlives_a_reboot(host, restart_server, sysctl, eventually):
    host.check_output("logger --tag carafe-test before-the-reboot; journalctl --sync")
    restart_server()
    found = {name: sysctl(name) for name in SYSCTL}
    assert found == SYSCTL
    assert "before-the-reboot" in host.check_output("journalctl --identifier carafe-test")
    assert host.service("apt-daily-upgrade.timer").is_running
