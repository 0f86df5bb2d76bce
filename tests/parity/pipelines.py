"""Pipeline files in which every kind of field occurs, and one in which hardly any does."""

__all__ = ["GREENHOUSE", "METER"]

# No two counts that could be mistaken for each other are equal: 3 numbers, 1 boolean, 2 positions (4 degrees),
# 2 categories of 5 and 7 codes, 3 other entities, 2 horizons, a window of 4, profiles of 1 to 3 half-lives
# that show 0, 2, 3 and 5 verdicts, one of them of the entity itself.
GREENHOUSE = """
[pipeline]
name = "greenhouse"
entity = "bed"
event_id = "reading"
time = "at"
max_future = "10m"

[fields]
reading = { type = "id" }
crop = { type = "category", buckets = 5 }
at = { type = "time", unit = "ms" }
heat = { type = "number", transform = "asinh", required = false }
bed = { type = "entity" }
pump = { type = "entity", required = false }
open = { type = "boolean" }
flow = { type = "number" }
spot = { type = "geo", latitude = "spot_lat", longitude = "spot_lon" }
mode = { type = "category", buckets = 7, required = false }
tank = { type = "entity", required = false }
light = { type = "number", min = 0, transform = "log1p", required = false }
drone = { type = "geo", latitude = "drone_lat", longitude = "drone_lon", required = false }
grower = { type = "entity" }

[window]
length = 4
horizons = ["90s", "3h"]

[profiles.pump]
key = "pump"
half_lives = ["2h"]
delay = "50m"
verdicts = 2

[profiles.tank]
key = "tank"
amount = "heat"
half_lives = ["3h", "1d", "9d"]
delay = "1h"
verdicts = 5
compare = "bed"

[profiles.bed]
key = "bed"
amount = "heat"
half_lives = ["1h", "4h"]
delay = "20s"
verdicts = 3

[profiles.grower]
key = "grower"
half_lives = ["1d"]
delay = "0s"
"""


# The least there can be: one number, and no profile, position, category or other entity.
METER = """
[pipeline]
name = "meter"
entity = "meter"
event_id = "reading"
time = "at"

[fields]
reading = { type = "id" }
at = { type = "time", unit = "ms" }
meter = { type = "entity" }
load = { type = "number", required = false }

[window]
length = 19
horizons = ["90s", "3h", "2d"]
"""
