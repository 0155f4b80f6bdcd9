"""Commands about one user: the pseudonym, the erasure, the models that were trained on the user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from distilrec.cli.app import Bundle, UserId, app, bundle_folder, held
from distilrec.cli.terminal import terminal_progress
from distilrec.errors import InvalidIdError, unknown_user
from distilrec.ids import as_id


@app.command
def pseudonym(
    *,
    user_id: UserId,
    key: Annotated[
        str,
        Parameter(help="The environment variable that holds the key, as in data.pseudonym_key."),
    ] = "DISTILREC_PSEUDONYM_KEY",
) -> None:
    """Print the name under which a run with pseudonyms knows a user: `recommend`, `forget` and the
    service take it.
    """
    from distilrec.data import pseudonyms

    print(pseudonyms.pseudonym(as_id(user_id, "user_id"), pseudonyms.pseudonym_key(key)))


@app.command
def forget(
    *,
    user_id: UserId,
    bundle: Bundle = None,
    run: Annotated[
        Path | None, Parameter(help="A whole run: its data, labels and bundles.")
    ] = None,
    missing_ok: Annotated[bool, Parameter(help="An unknown user is not an error.")] = False,
) -> None:
    """Take a user out of the history in a bundle that no service has loaded, or out of a whole run.

    An unknown user gives exit code 2, unless --missing-ok is given.
    """
    if run is not None:
        from distilrec import runs

        with terminal_progress() as progress, held(run):
            done = runs.forget_user(runs.open_run(run, progress), user_id, missing_ok=missing_ok)
        print("\n".join(done) or "this run holds nothing about that user")
        return
    folder = bundle_folder(bundle)
    if _erased_from_bundle(folder, user_id):
        print("erased")
    elif missing_ok:
        print("this bundle holds nothing about that user")
    else:
        raise unknown_user(
            user_id, f"the bundle {folder}", "check the id; --missing-ok makes this no error"
        )


def _erased_from_bundle(folder: Path, user_id: str) -> bool:
    """Erase a user from a bundle, as given and by the rule for ids. Return whether it held either.

    A bundle made before ids followed a rule may hold an id that breaks it.
    """
    from distilrec.bundle.format import erase_user

    try:
        name = as_id(user_id, "user_id")
    except InvalidIdError:
        if not erase_user(folder, user_id):
            raise
        return True
    return any([erase_user(folder, text) for text in dict.fromkeys((name, user_id))])


@app.command
def seen(
    *,
    user_id: UserId,
    runs: Annotated[Path, Parameter(help="Folder of run folders.")] = Path("runs"),
) -> None:
    """List the exported models that were trained on a user's rows, the oldest first."""
    from datetime import UTC, datetime

    from distilrec.runs.seen import models_that_saw

    models = models_that_saw(runs, as_id(user_id, "user_id"))
    for model in models:
        when = datetime.fromtimestamp(model.exported, UTC).isoformat(timespec="seconds")
        private = ", with differential privacy" if model.private else ""
        print(f"{model.model_version}  {when}  {model.dataset}{private}")
    if not models:
        print(f"no model recorded below {runs} was trained on this user")
