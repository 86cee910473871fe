import os

import dj_database_url

from .base import INSTALLED_APPS

INSTALLED_APPS += ["django.contrib.postgres"]
SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["wagtail.test"]
DATABASES = {"default": dj_database_url.config()}
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
