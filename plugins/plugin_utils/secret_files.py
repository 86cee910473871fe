"""Tell by its name and by what it holds whether a file looks like a secret.

What a developer has beside the code, such as keys and the settings of one machine, is no part of an
app. This errs on the side of leaving a file at home: one that the app needs can be named.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# A history of all that was ever in the code, with the URLs that it came from.
HISTORY = {".git", ".svn", ".hg", ".bzr", ".jj", "CVS", "_darcs", ".fslckout", "_FOSSIL_"}
# Of a person, or of a machine.
KEYRINGS = {".ssh", ".gnupg", ".aws", ".azure", ".gcloud", ".kube", ".password-store", ".oci"}

WORD = r"(example|sample|template|tmpl|dist|default)s?"
EXAMPLE = re.compile(
    rf".*[._-]{WORD}(\.(ya?ml|json|toml|ini|txt|env|pem|key))?|{WORD}[._-].*", re.IGNORECASE
)
BACKUP = re.compile(r"(\.(bak|old|orig|save|swp|\d+)|~)+$", re.IGNORECASE)
NAMES = [
    (r"\.env(rc)?([._-].+)?|.+\.env", "settings with secrets"),
    (r"id_(rsa|dsa|ecdsa|ed25519|xmss)(_sk)?", "a private key"),
    (r".+\.(ppk|p8|p12|pfx|jks|keystore|kdbx?|agekey|asc\.key)", "a private key"),
    (r"[._]netrc|\.pgpass|\.my\.cnf|\.mylogin\.cnf|\.htpasswd|\.git-credentials", "passwords"),
    (
        r"\.pypirc|\.dockercfg|\.s3cfg|\.boto|\.vault-token|\.terraformrc",
        "tokens",
    ),
    (r"[._-]?(ansible[._-]?)?vault[._-]?(pass|password|pw|key)([._-].+)?", "a vault's password"),
    (r".+\.tfstate(\.backup)?|.+\.tfvars(\.json)?", "the state of Terraform"),
    (r"kubeconfig(\.ya?ml)?|master\.key", "keys"),
    (r"secrets?\.(ya?ml|toml|json|ini|env|txt)", "secrets"),
]
PATHS = [(r"\.docker/config\.json", "tokens"), (r"\.streamlit/secrets\.toml", "secrets")]
FLAGS = re.IGNORECASE | re.DOTALL  # a name may have a line break in it
LOOKED_AT = 200_000  # bytes of a file's beginning

# Each file is asked for these words, which is fast, before it is looked at by a pattern.
KEY_WORDS = (b"PRIVATE KEY", b"PuTTY-User-Key-File-", b"AGE-SECRET-KEY-1")
PRIVATE_KEY = re.compile(
    rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|PuTTY-User-Key-File-|^AGE-SECRET-KEY-1", re.M
)
# Elsewhere than at its beginning, a key may be one of a test, in the text of a program.
HOLDS_KEYS = (
    r".*\.(pem|key|crt|cer|cert|ca-bundle|txt|conf|cfg|ini|ovpn|ya?ml|toml|json|properties)|[^.]+"
)
CONTENTS = [
    (re.compile(rb'"private_key"\s*:\s*"-----BEGIN'), r".*\.json", "a service account's key"),
    (
        re.compile(rb'"(client_secret|refresh_token)"\s*:\s*"[\w.~/+=-]{16,}"'),
        *(r".*\.json", "an account's token"),
    ),
    (re.compile(rb"(_authToken|_auth|_password)\s*=\s*[^$\s]"), r"\.npmrc|npmrc", "a token"),
    (re.compile(rb"npm(AuthToken|AuthIdent)\s*:\s*[^$\s]"), r"\.yarnrc\.yml", "a token"),
    (re.compile(rb"://[^\s/@$]+:[^\s/@$]+@"), r"pip\.(conf|ini)|uv\.toml|\.condarc", "a password"),
    (
        re.compile(rb"^\s*aws_secret_access_key\s*=\s*[\w/+]{20,}", re.I | re.M),
        *(r".*\.(ini|cfg|conf|txt)|[^.]+", "a key of AWS"),
    ),
    (re.compile(rb"\A\$ANSIBLE_VAULT;"), r".*", "a vault"),
]


def folder_looks_secret(name: str) -> str:
    """Return what a folder holds that is no part of an app, or ''."""
    return "history" if name in HISTORY else "keys" if name in KEYRINGS else ""


def looks_secret(path: str, content: bytes) -> str:
    """Return what a file seems to hold, or ''."""
    name, beginning = PurePosixPath(path).name, content[:LOOKED_AT]
    if EXAMPLE.fullmatch(name):
        return ""
    if name in HISTORY:  # of a worktree or a submodule
        return "history"
    name = BACKUP.sub("", name) or name
    path = str(PurePosixPath(path).with_name(name))
    for pattern, what in NAMES:
        if re.fullmatch(pattern, name, FLAGS):
            return what
    for pattern, what in PATHS:
        if re.fullmatch(rf"(.*/)?{pattern}", path, FLAGS):
            return what
    words = any(word in beginning for word in KEY_WORDS)
    key = PRIVATE_KEY.search(beginning) if words else None
    if key and (re.fullmatch(HOLDS_KEYS, name, FLAGS) or not beginning[: key.start()].strip()):
        return "a private key"
    for marks, names, what in CONTENTS:
        if re.fullmatch(names, name, FLAGS) and marks.search(beginning):
            return what
    return ""
