"""Folded rows of measurements: chosen, and put into tables."""


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def pick(rows, **wanted):
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def sizes_of(rows):
    found = {row["inner_bytes"] for row in rows}
    return sorted((size for size in found if size != "imix"), key=int) + (["imix"] if "imix" in found else [])


def value(rows, key, **wanted):
    found = pick(rows, **wanted)
    return found[0].get(key) if found else None


def ratio(one, other, digits=2):
    return round(one / other, digits) if one and other else None
