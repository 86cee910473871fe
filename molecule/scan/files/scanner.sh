# Install the scanners on the server that scans the others. Standard input of a shell there.
set -eu
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
  bsdextrautils dnsutils procps python3-venv slowhttptest ssg-debian testssl.sh >/dev/null
python3 -m venv /opt/scanners
/opt/scanners/bin/pip install --quiet --disable-pip-version-check \
  gixy-ng==0.2.59 pip-audit==2.10.1 ssh-audit==3.9.0 sslyze==6.3.1
