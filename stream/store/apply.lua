-- Add one source partition's outbox to the shared profiles of one shard, once.
--
-- KEYS: the shard's record of what was applied, then profiles, those of one kind together.
-- ARGV: source, number of the entry, time to live in ms, then for each kind its header, the size of a value of
-- version 1, how many verdicts it has room for, the stretch of time in ms of which it keeps PER_STRETCH, how many
-- increments each of its KEYS has (u16 each), and all these increments.
-- Returns 1, or 0 when this entry or a later one of the source was applied before.
--
-- A profile is its header and a record of 28 bytes for each slot that holds anything: place (4), bucket (4), count,
-- labels, frauds, amount (20). An increment has the same form: the first one of a slot is its record. Records that
-- were touched last stand first, where the next batch, which mostly touches the same slots, finds them in its order.
-- models/features/profiles.py (accumulate) is the same rule in numpy. Behind them stand verdicts, records whose place
-- is VERDICT: clock (8), id (8), fraud, ratio (4 each). models/features/verdicts.py says which are kept; its `insert`
-- is the same rule.
local read, write, sub, concat, floor = struct.unpack, struct.pack, string.sub, table.concat, math.floor
local HEADER, RECORD, SLOT = 8, 28, 24
local VERDICT, PER_STRETCH = '\255\255\255\255', 4
local CHUNK = 1000 -- keys a command: Lua hands over 8,000 arguments at most
local ONE = '<c8I4I4I4i8' -- a record: place and bucket as one string, and its counters
local TWO = ONE .. 'c8I4I4I4i8'

local function is_verdict(records, at)
  return sub(records, at, at + 3) == VERDICT
end

-- where the verdicts of these records begin
local function verdicts_of(records, at)
  local low, high = 0, (#records + 1 - at) / RECORD
  while low < high do
    local middle = floor((low + high) / 2)
    if is_verdict(records, at + middle * RECORD) then
      high = middle
    else
      low = middle + 1
    end
  end
  return at + low * RECORD
end

-- the value after increments of any slots, in their order
local function merged(value, increments)
  local records, old, new, touched = {}, {}, {}, {}
  local stop = verdicts_of(value, HEADER + 1)
  for at = HEADER + 1, stop - 1, RECORD do
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
  parts[#parts + 1] = sub(value, stop)
  return concat(parts)
end

-- of a verdict: clock, id as two halves (a number of Lua has 53 bits), fraud, ratio
local function parsed(verdict)
  local clock, low, high, fraud, ratio = read('<i8I4I4I4i4', verdict, 5)
  return { clock, high, low, fraud, ratio }
end

-- the order of verdicts, and within a stretch which is worse
local function before(v, w)
  for i = 1, 5 do
    if v[i] ~= w[i] then
      return v[i] < w[i]
    end
  end
  return false
end
local function worse(v, w)
  if v[4] ~= w[4] then
    return v[4] < w[4]
  elseif v[2] ~= w[2] then
    return v[2] > w[2]
  elseif v[3] ~= w[3] then
    return v[3] > w[3]
  end
  return before(w, v)
end

-- add one verdict to the records of verdicts
local function insert(records, verdict, room, stretch)
  local v, held = parsed(verdict), #records
  local number, place = floor(v[1] / stretch), held -- records up to `place` stay before it
  local function number_of(i)
    return floor(read('<i8', records[i], 5) / stretch)
  end
  while place > 0 and before(v, parsed(records[place])) do
    place = place - 1
  end
  if records[place] == verdict then
    return
  end
  local first, last = place + 1, place -- of this stretch
  while first > 1 and number_of(first - 1) == number do
    first = first - 1
  end
  while last < held and number_of(last + 1) == number do
    last = last + 1
  end
  if last - first + 1 >= PER_STRETCH then
    local worst, w = 0, v
    for i = first, last do
      local other = parsed(records[i])
      if worse(other, w) then
        worst, w = i, other
      end
    end
    if worst > 0 then
      table.insert(records, place + 1, verdict)
      table.remove(records, worst > place and worst + 1 or worst)
    end
    return
  end
  if held > 0 then
    local oldest, gone = number_of(1), 1
    if number < oldest and held > room - PER_STRETCH then
      return
    elseif number > oldest then
      while gone < held and number_of(gone + 1) == oldest do
        gone = gone + 1
      end
      if held + 1 - gone > room - PER_STRETCH then
        for _ = 1, gone do
          table.remove(records, 1)
        end
        place = place - gone
      end
    end
  end
  table.insert(records, place + 1, verdict)
end

-- the value after n verdicts
local function judged(value, increments, at, n, room, stretch)
  local stop, records = verdicts_of(value, HEADER + 1), {}
  for from = stop, #value, RECORD do
    records[#records + 1] = sub(value, from, from + RECORD - 1)
  end
  for from = at, at + RECORD * (n - 1), RECORD do
    insert(records, sub(increments, from, from + RECORD - 1), room, stretch)
  end
  return sub(value, 1, stop - 1) .. concat(records)
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
for kind = 4, #ARGV, 6 do
  local header, size, room, stretch = ARGV[kind], tonumber(ARGV[kind + 1]), tonumber(ARGV[kind + 2]), ARGV[kind + 3]
  local counts, increments, at = ARGV[kind + 4], ARGV[kind + 5], 1
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
    local n, verdicts = read('<I2', counts, c), 0
    while verdicts < n and is_verdict(increments, at + RECORD * (n - verdicts - 1)) do
      verdicts = verdicts + 1
    end
    if verdicts < n then
      value = after(value, increments, at, n - verdicts)
    end
    if verdicts > 0 and room > 0 then -- the pipeline may keep none any more
      value = judged(value, increments, at + RECORD * (n - verdicts), verdicts, room, tonumber(stretch))
    end
    values[k] = value
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
