-- Write what one source partition has come to, if nobody else has: fenced by its position.
--
-- KEYS: position, outbox, states…   ARGV: expected position ('' for none), new position,
-- outbox entry, time to live in ms, states…   Returns 1, or 0 when the position had moved.
local CHUNK = 1000 -- keys a command: Lua hands over 8,000 arguments at most

local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then
  return 0
end
for from = 3, #KEYS, CHUNK do
  local last = math.min(from + CHUNK - 1, #KEYS)
  local command, n = { 'MSETEX', last - from + 1 }, 2
  for i = from, last do
    command[n + 1], command[n + 2] = KEYS[i], ARGV[i + 2]
    n = n + 2
  end
  command[n + 1], command[n + 2] = 'PX', ARGV[4]
  local done = redis.pcall(unpack(command))
  if type(done) == 'table' and done.err then
    if not string.find(done.err, 'nknown', 1, true) then
      return done
    end
    for i = from, last do -- a server without MSETEX
      redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[4])
    end
  end
end
redis.call('MSET', KEYS[2], ARGV[3], KEYS[1], ARGV[2])
return 1
