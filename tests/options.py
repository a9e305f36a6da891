"""Options of commands, some of them given otherwise."""


def changed(options, *more):
  """`options` with `more`, which replace those of the same name."""
  names = {option.partition('=')[0] for option in more}
  kept = [o for o in options if o.partition('=')[0] not in names]
  return [*kept, *more]
