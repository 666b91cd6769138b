-- Makes keys of a ledger to be, each with a sentinel field, so that every declared key exists.
-- What a cut run left is taken over; what holds anything else is refused.
--
-- KEYS: meta, then hashes. ARGV: sentinel field.

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
