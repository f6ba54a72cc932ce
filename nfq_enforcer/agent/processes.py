"""Process endpoints of the configuration: users, groups and units, as the source of processes takes them."""

import grp
import pwd
from pathlib import Path

from nfq_enforcer.agent.config import Config, PermissionSection
from nfq_enforcer.errors import BadInput
from nfq_enforcer.workloads.cgroups import Cgroups, find_root
from nfq_enforcer.workloads.processes import Permission, Processes, Unit
from nfq_enforcer.workloads.registrar import Registrar


def source(config: Config, registrar: Registrar) -> Processes:
    """Return the source of processes; raise BadInput for a user or group that this host does not have."""
    root, section = find_root(), config.processes
    units = [Unit(one.path, one.endpoint, one.namespace, one.labels) for one in section.units]
    permissions = [_permission(one, place) for place, one in enumerate(section.allow)]
    file = Path(config.state) / "processes.json"
    return Processes(registrar, Cgroups(root) if root else None, section.cgroup, units, permissions, file)


def _permission(section: PermissionSection, place: int) -> Permission:
    uid = gid = None
    try:
        if section.user is not None:
            uid = section.user if isinstance(section.user, int) else pwd.getpwnam(section.user).pw_uid
        if section.group is not None:
            gid = section.group if isinstance(section.group, int) else grp.getgrnam(section.group).gr_gid
    except KeyError:
        kind, name = ("user", section.user) if section.user is not None else ("group", section.group)
        raise BadInput(f"processes.allow[{place}].{kind}: this host has no {kind} '{name}'") from None
    return Permission(uid, gid, section.namespace, section.labels)
