-- Write what one source partition has come to, if nobody else has: fenced by its position.
--
-- KEYS: position, outbox, states…   ARGV: expected position ('' for none), new position,
-- outbox entry, time to live in ms, states…   Returns 1, or 0 when the position had moved.
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then
  return 0
end
for i = 3, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[4])
end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('SET', KEYS[1], ARGV[2])
return 1
