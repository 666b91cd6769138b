-- Turns a copy into a ledger: creates its empty log and its fence, and writes the meta fields last.
--
-- KEYS: meta, log, fence. ARGV: the copy's token, channel, PUBLISH or SPUBLISH, then field and value of each
-- meta field.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'copying')
if known[1] or known[2] ~= ARGV[1] then
  return redis.error_reply('EXISTS another copy or a ledger')
end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and not (kind == 'stream' and redis.call('XLEN', KEYS[2]) == 0) then
  return redis.error_reply('EXISTS parts of a ledger')
end
if kind == 'none' then
  redis.call('XADD', KEYS[2], '0-1', 'p', '')
  redis.call('XDEL', KEYS[2], '0-1')
end
redis.call('SET', KEYS[3], '1')
redis.call('HDEL', KEYS[1], 'copying')
local fields = redis.call('HSET', KEYS[1], unpack(ARGV, 4))
-- An empty announcement only makes followers poll at once.
redis.pcall(ARGV[3], ARGV[2], '')
return fields
