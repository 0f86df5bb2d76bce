-- Add one source partition's outbox to the shared profiles of one shard, once.
--
-- KEYS: the shard's record of what was applied, then profiles, those of one kind together.
-- ARGV: source, number of the entry, time to live in ms, then for each kind its header, the size of a value of
-- version 1, how many increments each of its KEYS has (u16 each), and all these increments.
-- Returns 1, or 0 when this entry or a later one of the source was applied before.
--
-- A profile is its header and a record of 28 bytes for each slot that holds anything: place (4), bucket (4), count,
-- labels, frauds, amount (20). An increment has the same form: the first one of a slot is its record. Records that
-- were touched last stand first, where the next batch, which mostly touches the same slots, finds them in its order.
-- models/features/profiles.py (accumulate) is the same rule in numpy.
local read, write, sub, concat = struct.unpack, struct.pack, string.sub, table.concat
local HEADER, RECORD, SLOT = 8, 28, 24
local CHUNK = 1000 -- keys a command: Lua hands over 8,000 arguments at most
local ONE = '<c8I4I4I4i8' -- a record: place and bucket as one string, and its counters
local TWO = ONE .. 'c8I4I4I4i8'

-- the value after increments of any slots, in their order
local function merged(value, increments)
  local records, old, new, touched = {}, {}, {}, {}
  for at = HEADER + 1, #value, RECORD do
    local place = sub(value, at, at + 3)
    records[place], old[#old + 1] = sub(value, at, at + RECORD - 1), place
  end
  for i = 1, #increments, RECORD do
    local increment = sub(increments, i, i + RECORD - 1)
    local place, bucket = sub(increment, 1, 4), read('<i4', increment, 5)
    local record = records[place]
    local held = record and read('<i4', record, 5) or 0 -- a slot that nothing was added to is bucket 0 of nothing
    if bucket >= held then
      if record and bucket == held then
        local _, c, l, f, a = read(ONE, record)
        local which, c2, l2, f2, a2 = read(ONE, increment)
        increment = write(ONE, which, c + c2, l + l2, f + f2, a + a2)
      end
      records[place] = increment
      if not touched[place] then
        touched[place], new[#new + 1] = true, place
      end
    end
  end
  local parts = { sub(value, 1, HEADER) }
  for _, place in ipairs(new) do
    parts[#parts + 1] = records[place]
  end
  for _, place in ipairs(old) do
    if not touched[place] then
      parts[#parts + 1] = records[place]
    end
  end
  return concat(parts)
end

-- one or two records after increments of the same buckets; false when the buckets are others
local function one(records, at, increments, i)
  local which, c, l, f, a = read(ONE, records, at)
  local other, c2, l2, f2, a2 = read(ONE, increments, i)
  return which == other and write(ONE, which, c + c2, l + l2, f + f2, a + a2)
end
local function two(records, at, increments, i)
  local which, c, l, f, a, next, C, L, F, A = read(TWO, records, at)
  local other, c2, l2, f2, a2, last, C2, L2, F2, A2 = read(TWO, increments, i)
  return which == other and next == last
    and write(TWO, which, c + c2, l + l2, f + f2, a + a2, next, C + C2, L + L2, F + F2, A + A2)
end

-- the value after n increments; quick when they add to the buckets that stand first
local function after(value, increments, at, n)
  local stop = HEADER + RECORD * n
  if n >= 1 and n <= 4 and #value >= stop then
    local first, rest = '', ''
    if n >= 2 then
      first = two(value, HEADER + 1, increments, at)
    else
      first = one(value, HEADER + 1, increments, at)
    end
    if first and n >= 3 then
      rest = (n == 4 and two or one)(value, HEADER + 1 + 2 * RECORD, increments, at + 2 * RECORD)
    end
    if first and rest then
      return sub(value, 1, HEADER) .. first .. rest .. sub(value, stop + 1)
    end
  end
  return merged(value, sub(increments, at, at + RECORD * n - 1))
end

-- a value of version 1, all slots in a row, as one of this version
local function sparse(value, header)
  local parts, nothing = { header }, string.rep('\0', SLOT)
  for at = HEADER, #value - 1, SLOT do
    local slot = sub(value, at + 1, at + SLOT)
    if slot ~= nothing then
      parts[#parts + 1] = write('<I4', at) .. slot
    end
  end
  return concat(parts)
end

-- nil when another layout wrote the value
local function checked(value, header, size)
  local prefix = sub(value, 1, HEADER)
  if prefix == header and (#value - HEADER) % RECORD == 0 then
    return value
  elseif prefix == '\1' .. sub(header, 2) and #value == size then
    return sparse(value, header)
  end
end

if tonumber(ARGV[2]) <= tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0') then
  return 0
end
local values = {}
for k = 2, #KEYS, CHUNK do
  for i, value in ipairs(redis.call('MGET', unpack(KEYS, k, math.min(k + CHUNK - 1, #KEYS)))) do
    values[k + i - 1] = value
  end
end

-- all is computed before anything is written: a script that fails half way is not undone
local k = 1
for kind = 4, #ARGV, 4 do
  local header, size, counts, increments = ARGV[kind], tonumber(ARGV[kind + 1]), ARGV[kind + 2], ARGV[kind + 3]
  local at = 1
  for c = 1, #counts, 2 do
    k = k + 1
    local value = header
    if values[k] then
      value = checked(values[k], header, size)
      if not value then
        return redis.error_reply('LAYOUT ' .. KEYS[k])
      end
    elseif redis.call('STRLEN', KEYS[k]) > 0 then -- an error when it holds no string
      return redis.error_reply('LAYOUT ' .. KEYS[k])
    end
    local n = read('<I2', counts, c)
    values[k] = after(value, increments, at, n)
    at = at + RECORD * n
  end
end

for from = 2, #KEYS, CHUNK do
  local last = math.min(from + CHUNK - 1, #KEYS)
  local command = { 'MSETEX', last - from + 1 }
  for i = from, last do
    command[#command + 1] = KEYS[i]
    command[#command + 1] = values[i]
  end
  command[#command + 1] = 'PX'
  command[#command + 1] = ARGV[3]
  local done = redis.pcall(unpack(command))
  if type(done) == 'table' and done.err then
    if not string.find(done.err, 'nknown', 1, true) then
      return done
    end
    for i = from, last do -- a server without MSETEX
      redis.call('SET', KEYS[i], values[i], 'PX', ARGV[3])
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
