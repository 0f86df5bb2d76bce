-- Add one source partition's outbox to the shared profiles of one shard, once.
--
-- KEYS: the shard's record of what was applied, profiles…
-- ARGV: source, number of the entry, time to live in ms, then for each profile: its empty value, and its
-- increments (offset in the value, bucket, count, labels, frauds, amount).
-- Returns 1, or 0 when this entry or a later one of the source was applied before.
-- models/features/profiles.py (accumulate) is the same rule in numpy.
local number = tonumber(ARGV[2])
local applied = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if number <= applied then
  return 0
end
local header = 8
for k = 2, #KEYS do
  -- before anything is written: a script that fails half way is not undone
  local empty, size = ARGV[2 * k], redis.call('STRLEN', KEYS[k])
  local other = redis.call('GETRANGE', KEYS[k], 0, header - 1) ~= string.sub(empty, 1, header)
  if size > 0 and (size ~= #empty or other) then
    return redis.error_reply('LAYOUT ' .. KEYS[k])
  end
end
for k = 2, #KEYS do
  local key, empty, increments = KEYS[k], ARGV[2 * k], ARGV[2 * k + 1]
  if redis.call('EXISTS', key) == 0 then
    redis.call('SET', key, empty)
  end
  local at = 1
  while at <= #increments do
    local offset, bucket, count, labels, frauds, amount
    offset, bucket, count, labels, frauds, amount, at = struct.unpack('<I4i4I4I4I4i8', increments, at)
    local b, c, l, f, a = struct.unpack('<i4I4I4I4i8', redis.call('GETRANGE', key, offset, offset + 23))
    if bucket > b then
      b, c, l, f, a = bucket, 0, 0, 0, 0
    end
    if bucket == b then
      local slot = struct.pack('<i4I4I4I4i8', b, c + count, l + labels, f + frauds, a + amount)
      redis.call('SETRANGE', key, offset, slot)
    end
  end
  redis.call('PEXPIRE', key, ARGV[3])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
