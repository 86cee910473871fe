import os

from wsgidav.wsgidav_app import WsgiDAVApp

app = WsgiDAVApp(
    {
        "provider_mapping": {"/": "/srv/wsgidav/shared/files"},
        "simple_dc": {"user_mapping": {"*": {"ada": {"password": os.environ["DAV_PASSWORD"]}}}},
        # A digest's nonces would be those of one process.
        "http_authenticator": {"accept_digest": False, "default_to_digest": False},
    }
)
