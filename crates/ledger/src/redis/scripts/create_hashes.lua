-- Creates hashes of a new ledger, each with a sentinel field, so that every key that a script declares
-- exists. Hashes that an interrupted run has created are accepted; keys with any other content are refused.
--
-- KEYS: meta, then hashes. ARGV: sentinel field. Returns the number of hashes.

if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('EXISTS a ledger') end
for n = 2, #KEYS do
  local kind = redis.call('TYPE', KEYS[n]).ok
  if kind ~= 'none' and not (kind == 'hash' and redis.call('HLEN', KEYS[n]) == 1
      and redis.call('HEXISTS', KEYS[n], ARGV[1]) == 1) then
    return redis.error_reply('EXISTS parts of a ledger')
  end
end
for n = 2, #KEYS do redis.call('HSET', KEYS[n], ARGV[1], '') end
return #KEYS - 1
