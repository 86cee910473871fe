"""The WSGI entry point: `gunicorn wsgi:app`, and what `flask` finds without FLASK_APP."""

from guestbook import create_app

app = create_app()
