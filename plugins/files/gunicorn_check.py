# Managed by Ansible.
# Loads an app as gunicorn does, and sees whether it speaks what its worker does:
#   check.py INTERFACE OPTION_OF_GUNICORN ...
import inspect
import sys
from pathlib import Path

# As with python -m gunicorn, and not the folder of this file.
sys.path[0] = str(Path.cwd())

from gunicorn.app.wsgiapp import WSGIApplication  # noqa: E402 - found as with python -m gunicorn

INTERFACE = sys.argv.pop(1)


def spoken(app):
    """Return what an app is by what it takes: wsgi two arguments, asgi three, factory none.

    Where nobody can tell, that is ''.
    """
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return ""

    def takes(count):
        try:
            signature.bind(*range(count))
        except TypeError:
            return False
        return True

    found = [name for name, count in (("wsgi", 2), ("asgi", 3)) if takes(count)]
    if len(found) == 1:
        return found[0]
    if found:
        waits = inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__)
        return "asgi" if waits else ""
    return "factory" if takes(0) else ""


class Checked(WSGIApplication):
    def load(self):
        app, where = super().load(), self.app_uri
        found = spoken(app)
        if found == "factory":
            sys.exit(
                f"gunicorn_wsgi is {where}, which makes an app and is none: {where}() calls it"
            )
        if found and found != INTERFACE:
            sys.exit(f"gunicorn_interface is {INTERFACE}, and {where} is an app of {found.upper()}")
        return app


Checked("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").run()
