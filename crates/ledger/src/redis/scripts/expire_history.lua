-- Replaces expired history entries by their digests, each only if it is still the entry that was read.
--
-- KEYS: meta, a bucket's histories. ARGV: epoch, then field, old value and new value of each entry.
-- Returns the number of replaced entries.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
if redis.call('HEXISTS', KEYS[2], '.') == 0 then return redis.error_reply('LOST ' .. KEYS[2]) end
local replaced = 0
for n = 2, #ARGV, 3 do
  if redis.call('HGET', KEYS[2], ARGV[n]) == ARGV[n + 1] then
    redis.call('HSET', KEYS[2], ARGV[n], ARGV[n + 2])
    replaced = replaced + 1
  end
end
return replaced
