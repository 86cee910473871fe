#!/bin/sh
# What a careful person would type on a bare server to get the same app behind nginx. It is what
# site.yml is measured against: the same packages from Debian and the package index, nothing that is
# checked, made idempotent, tuned or secured. Runs as root; the app's code lies in /srv/guestbook.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
version=$(sed -n 's/^gunicorn==//p' /srv/guestbook/.server)
apt-get update -qq
apt-get install -qq -y --no-install-recommends sudo acl postgresql ssl-cert python3-psycopg2 python3-venv brotli \
  supervisor nginx libnginx-mod-http-brotli-filter libnginx-mod-http-brotli-static libnginx-mod-stream >/dev/null

useradd --system --home-dir /srv/guestbook --shell /usr/sbin/nologin guestbook
cd /srv/guestbook
python3 -m venv .venv
.venv/bin/pip install -q --no-input --disable-pip-version-check -r requirements.txt
.venv/bin/pip install -q --no-input --disable-pip-version-check "gunicorn==$version"
.venv/bin/flask assets build
.venv/bin/python -m compileall -q guestbook

runuser -u postgres -- createuser guestbook
runuser -u postgres -- createdb -T template0 -E UTF8 --locale C.UTF-8 -O guestbook guestbook
cat >/etc/guestbook.env <<'ENV'
FLASK_SECRET_KEY=only-for-this-measurement-0123456789
FLASK_SESSION_COOKIE_SECURE=false
DATABASE_URL=postgresql://guestbook@/guestbook?host=/run/postgresql
ENV
runuser -u guestbook -- sh -c 'set -a; . /etc/guestbook.env; .venv/bin/flask db upgrade' >/dev/null 2>&1

cat >/etc/supervisor/conf.d/guestbook.conf <<'CONF'
[program:guestbook]
command=/bin/sh -c 'set -a; . /etc/guestbook.env; exec .venv/bin/gunicorn --workers 2 --worker-class gthread --threads 4 --no-control-socket --bind unix:/srv/guestbook/run/app.sock wsgi:app'
directory=/srv/guestbook
user=guestbook
CONF
install -d -o guestbook -g www-data -m 0750 run
supervisorctl update >/dev/null

cat >/etc/nginx/sites-enabled/default <<'CONF'
server {
    listen 80 default_server;
    location /static/ { alias /srv/guestbook/guestbook/static/; }
    location / {
        proxy_pass http://unix:/srv/guestbook/run/app.sock;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
    }
}
CONF
systemctl reload nginx
