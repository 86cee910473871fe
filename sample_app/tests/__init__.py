"""Tests of the guestbook, on a real PostgreSQL."""
