"""What a traced value is computed from: the operations of the code that is being traced.

Functions that the script compiles apart, and branches, are looked into. Nothing is run, and nothing
is added to the trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from steadygrad.launch.jax_script.internals import Equation, bodies_of, equation_of, is_literal

BRANCHES = "cond"


class Operation(NamedTuple):
    """One operation.

    Attributes:
        name: of the primitive.
        inputs: values that it was given.
        params: those of the primitive.
    """

    name: str
    inputs: Sequence[object]
    params: Mapping[str, object]


class Inner:
    """A value inside of a function that the traced code calls.

    Args:
        variable: what stands for it there.
        shape: its shape.
        body: where it is.
    """

    def __init__(self, variable: object, shape: tuple[int, ...], body: Body) -> None:
        self.variable, self.shape, self.body = variable, shape, body


class Body:
    """A function that the traced code calls, or one branch of a condition.

    Args:
        equations: its operations.
        arguments: its variables, to the values that it is called with.
    """

    def __init__(self, equations: Sequence[Equation], arguments: Mapping[object, object]) -> None:
        self._made = {variable: one for one in equations for variable in one.outvars}
        self._values = dict(arguments)

    def value(self, variable: object) -> object:
        """What stands for a variable: itself where it is a literal."""
        if is_literal(variable):
            return variable
        if variable not in self._values:
            self._values[variable] = Inner(variable, variable.aval.shape, self)  # type: ignore[attr-defined]
        return self._values[variable]

    def equation(self, variable: object) -> Equation | None:
        """What has made a variable; None for what the function is given."""
        return self._made.get(variable)


Called = tuple[Body, Sequence[object]]
"""A function that was called, and its variables that hold the results."""


class DataFlow:
    """Follows values back, each to one operation."""

    def __init__(self) -> None:
        self._bodies: dict[tuple[int, int], tuple[object, list[Called]]] = {}
        self._outside: dict[int, tuple[object, object]] = {}

    def resolved(self, value: object) -> object:
        """The value itself, not the name that a called function gives it."""
        outside = None
        while True:
            if not isinstance(value, Inner):
                outside = value
            elif outside is not None:
                self._outside.setdefault(id(value), (value, outside))
            equation = self._equation(value)
            if equation is None or equation.primitive == BRANCHES:
                return value
            bodies = self._looked_into(value, equation)
            if not bodies:
                return value
            body, results = bodies[0]
            value = body.value(results[equation.place])

    def outside(self, value: object) -> object:
        """What the traced code itself calls a value that a called function has returned."""
        return self._outside[id(value)][1] if id(value) in self._outside else value

    def operation(self, value: object) -> Operation | None:
        """What a resolved value was made by; None for what the traced code is given."""
        equation = self._equation(value)
        if equation is None:
            return None
        inputs = [self.resolved(one) for one in equation.inputs]
        if equation.primitive == BRANCHES:
            bodies = self._looked_into(value, equation)
            results = [body.value(outputs[equation.place]) for body, outputs in bodies]
            return Operation(BRANCHES, [inputs[0], *map(self.resolved, results)], {})
        return Operation(equation.primitive, inputs, equation.params)

    def _equation(self, value: object) -> Equation | None:
        if not isinstance(value, Inner):
            return equation_of(value)
        equation = value.body.equation(value.variable)
        if equation is None:
            return None
        inputs = [value.body.value(one) for one in equation.inputs]
        place = list(equation.outvars).index(value.variable)
        return equation._replace(inputs=inputs, place=place)

    def _looked_into(self, value: object, equation: Equation) -> list[Called]:
        around = value.body if isinstance(value, Inner) else None
        key = id(equation.source), id(around)
        if key not in self._bodies:
            arguments = equation.inputs[1:] if equation.primitive == BRANCHES else equation.inputs
            bodies: list[Called] = []
            for inside in bodies_of(equation):
                if len(inside.inputs) != len(arguments):
                    return []
                values = dict(zip(inside.inputs, arguments, strict=True))
                bodies.append((Body(inside.equations, values), inside.results))
            self._bodies[key] = (equation, around), bodies  # alive: no other gets their ids
        return self._bodies[key][1]
