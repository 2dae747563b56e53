"""Check of LIBERO's assets, and of the suites and tasks that can be evaluated with them."""

from __future__ import annotations

from cluster.doctor.check_result import OK, WARN, CheckResult
from data.errors import InputError
from eval.simulator.libero.assets import find_assets, has_standins
from eval.simulator.libero.coverage import coverage
from eval.simulator.libero.names import PLUS_CATEGORIES, PRO_SUITES
from eval.simulator.libero.packages import INSTALL, package_folder, plus_folder, pro_folder

_SUBJECT = "LIBERO"


def libero() -> CheckResult:
    """Say which assets are there and which suites and tasks they serve."""
    try:
        assets = find_assets()
        suites = coverage(assets, package_folder())
    except InputError as error:
        return CheckResult(_SUBJECT, WARN, f"not usable: {error}", INSTALL)
    served = [f"{each.suite.removeprefix('libero_')} {each.served}/{each.tasks}" for each in suites]
    found = [f"{assets}: tasks of {', '.join(served)}"]
    missing = []
    for name, folder, what in (
        ("LIBERO-Pro", pro_folder, f"{len(PRO_SUITES)} suites"),
        ("LIBERO-Plus", plus_folder, ", ".join(PLUS_CATEGORIES)),
    ):
        try:
            folder()
        except InputError:
            missing.append(name)
        else:
            found.append(f"{name}: {what}")
    if has_standins(assets):
        found.append("some meshes are stand-ins, rates are not comparable with published ones")
    complete = not missing and not has_standins(assets) and all(each.served == each.tasks for each in suites)
    if complete:
        return CheckResult(_SUBJECT, OK, "; ".join(found))
    found += [f"{name} is not installed" for name in missing]
    return CheckResult(_SUBJECT, WARN, "; ".join(found), f"{INSTALL} (without LIBERO_ASSETS)")
