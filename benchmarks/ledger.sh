#!/bin/sh
# What a careful person would type to put a second app beside the first, from a git repository on the
# server. It is what deploy.yml is measured against: the same app with as many workers and threads, and
# gunicorn's own graceful stop, which waits for requests under way. Runs as root, after baseline.sh.
set -eu
export LC_ALL=C.UTF-8
useradd --system --home-dir /srv/ledger --shell /usr/sbin/nologin ledger
git clone --quiet /srv/ledger.git /srv/ledger
cd /srv/ledger
python3 -m venv .venv
.venv/bin/pip install -q --no-input --disable-pip-version-check -r requirements.txt

runuser -u postgres -- createuser ledger
runuser -u postgres -- createdb -T template0 -E UTF8 --locale C.UTF-8 -O ledger ledger
database='postgresql://ledger@/ledger?host=/run/postgresql'
runuser -u ledger -- env DATABASE_URL="$database" .venv/bin/alembic upgrade head >/dev/null 2>&1

cat >/etc/supervisor/conf.d/ledger.conf <<CONF
[program:ledger]
command=/srv/ledger/.venv/bin/gunicorn --workers 2 --worker-class gthread --threads 4 --graceful-timeout 30 --no-control-socket --bind unix:/srv/ledger/run/app.sock wsgi:app
directory=/srv/ledger
user=ledger
environment=DATABASE_URL="$database",APP_RELEASE="-"
stopwaitsecs=40
CONF
install -d -o ledger -g www-data -m 0750 run
supervisorctl update >/dev/null

cat >/etc/nginx/sites-enabled/ledger <<'CONF'
server {
    listen 80;
    server_name ledger;
    location / {
        proxy_pass http://unix:/srv/ledger/run/app.sock;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
    }
}
CONF
systemctl reload nginx
