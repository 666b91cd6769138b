-- Makes the rest of a ledger to be, and at last the meta key, which makes it one.
--
-- KEYS: meta, log, fence. ARGV: field and value of each of meta's.

if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('EXISTS a ledger') end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and not (kind == 'stream' and redis.call('XLEN', KEYS[2]) == 0) then
  return redis.error_reply('EXISTS parts of a ledger')
end
-- A log without entries, before whose end there is room for the first.
if kind == 'none' then
  redis.call('XADD', KEYS[2], '0-1', 'p', '')
  redis.call('XDEL', KEYS[2], '0-1')
end
redis.call('SET', KEYS[3], '1')
return redis.call('HSET', KEYS[1], unpack(ARGV))
