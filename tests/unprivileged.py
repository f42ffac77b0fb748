"""As whom the servers of the tests run when the tests are root's, and where such a user can read and write."""

import os
import pwd
import tempfile
from pathlib import Path


def unprivileged_user() -> pwd.struct_passwd | None:
    """Whom a server runs as: None is oneself."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        # The number is free to use without a name.
        return pwd.struct_passwd(("nobody", "", 65_534, 65_534, "", "/", "/bin/false"))


def temporary_folder_of_all() -> Path:
    """A folder for temporary files that every user can reach, unlike a TMPDIR of root's own."""
    for folder in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        if folder.is_dir() and all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents)):
            return folder
    raise RuntimeError("no temporary folder here can be reached by an unprivileged user")
