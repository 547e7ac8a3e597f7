"""`enroll policy`: who may publish and subscribe where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, Verbs, admin_home, open_registry
from enroll.cli.output import Row, print_rows, say
from fleet import topics
from fleet.errors import Denied, InvalidInput, NotFound, reason_of
from fleet.identity import DeviceId, Principal
from fleet.policy import Action, Decision, Policy, Rule

if TYPE_CHECKING:
    from enroll.simulation import Kind


def show(output: OutputOption = Output.TABLE, home: HomeOption = None) -> None:
    """List the rules; what none of them allows is refused."""
    from enroll.home import read_config

    rows = [_row(rule) for rule in read_config(admin_home(home)).policy.rules]
    print_rows(output, ("RULE", "ROLE", "ID", "ACTION", "TOPICS"), rows, nothing="there are no rules")


def _row(rule: Rule) -> Row:
    fields = {
        "name": rule.name,
        "role": rule.role.value,
        "id": rule.id,
        "action": rule.action.value,
        "pattern": rule.pattern,
    }
    return Row(rule.name, fields, (rule.name, rule.role.value, rule.id or "any", rule.action.value, rule.pattern))


def check(
    id: Annotated[str, typer.Argument(metavar="ID", help="Whoever would do it.")],
    action: Annotated[str, typer.Argument(metavar="publish|subscribe", help="What it would do.")],
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="A topic, or a filter to subscribe to.")],
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Say whether it may, and by which rule; exit status 4 if it may not."""
    from enroll.home import read_config
    from enroll.registry import identity

    at, wanted = admin_home(home), _action(action)
    _check_topic(wanted, topic)
    with open_registry(at) as registry, registry.read() as transaction:
        found = identity.find_principal(transaction, DeviceId(id))
    if found is None:
        raise NotFound(f"there is no {id}", hint="enroll device list")
    principal = found.principal
    decision = read_config(at).policy.decide(principal, wanted, topic)
    _print(output, principal, wanted, topic, decision)


def _action(text: str) -> Action:
    try:
        return Action(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:40]!r} is not an action", hint="publish or subscribe") from error


def _check_topic(action: Action, topic: str) -> None:
    is_valid = topics.is_topic_name(topic) if action is Action.PUBLISH else topics.is_topic_filter(topic)
    if not is_valid:
        kind = "a topic to publish to" if action is Action.PUBLISH else "a topic filter"
        raise InvalidInput(f"{topic[:120]!r} is not {kind}", hint="as devices/pump-07/up/telemetry/load")


def _print(output: Output, principal: Principal, action: Action, topic: str, decision: Decision) -> None:
    rule = decision.rule.name if decision.rule else None
    if output is Output.JSON:
        shown = {"principal": str(principal), "action": action.value, "topic": topic}
        print(json.dumps(shown | {"allowed": decision.allowed, "rule": rule}, indent=2))
    elif rule is not None:
        print(rule if output is Output.NAME else f"allowed by {rule}")
    if not decision.allowed:
        raise Denied(f"{principal} may not {action} {topic}: no rule allows it", hint="enroll policy show")


def simulate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A fleet.toml as it might be.")],
    all_: Annotated[bool, typer.Option("--all", help="Also what stays as it is.")] = False,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Replay the log against other rules; exit status 4 if somebody would lose something.

    Each certificate that was ever issued stands for what its holder may do, each command for its topics.
    """
    from enroll import simulation
    from enroll.home import read_config
    from enroll.registry import log

    at = admin_home(home)
    present, proposed = read_config(at).policy, _proposed(file)
    with open_registry(at) as registry, registry.read() as transaction:
        outcome = simulation.simulate(log.entries(transaction), present, proposed)
    kinds = sorted(outcome.counts, key=lambda kind: (not kind.is_lost, kind.who, kind.action, kind.shape))
    rows = [_kind_row(kind, outcome.counts[kind]) for kind in kinds if all_ or kind.is_changed]
    headers = ("WHO", "ACTION", "TOPICS", "USES", "NOW", "THEN")
    print_rows(output, headers, rows, nothing="nobody would lose or gain anything")
    say(f"replayed {outcome.entries} entries of the log: {outcome.uses} uses")
    if lost := sum(1 for kind in kinds if kind.is_lost):
        raise Denied(f"{lost} kinds of use that are allowed now would be refused", hint=f"mend the rules in {file}")


def _proposed(file: Path) -> Policy:
    from fleet import config

    try:
        return config.load(file.read_text()).policy
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read: {reason_of(error)}", hint="give a whole fleet.toml") from error


def _kind_row(kind: Kind, count: int) -> Row:
    fields = {
        "who": kind.who,
        "action": kind.action.value,
        "topics": kind.shape,
        "uses": count,
        "now": kind.before,
        "then": kind.after,
    }
    now, then = kind.before or "refused", kind.after or "refused"
    return Row(kind.who, fields, (kind.who, kind.action.value, kind.shape, str(count), now, then))


VERBS: Verbs = {"show": show, "check": check, "simulate": simulate}
