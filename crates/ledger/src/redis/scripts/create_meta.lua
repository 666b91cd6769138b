-- Completes a new ledger: creates its log and its fence, and last its meta key, which makes it a ledger.
--
-- KEYS: meta, log, fence. ARGV: field and value of each meta field.

if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('EXISTS a ledger') end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'none' and not (kind == 'stream' and redis.call('XLEN', KEYS[2]) == 0) then
  return redis.error_reply('EXISTS parts of a ledger')
end
-- An empty stream whose last id, 0-1, is below the first revision's id, 1-0.
if kind == 'none' then
  redis.call('XADD', KEYS[2], '0-1', 'p', '')
  redis.call('XDEL', KEYS[2], '0-1')
end
redis.call('SET', KEYS[3], '1')
return redis.call('HSET', KEYS[1], unpack(ARGV))
