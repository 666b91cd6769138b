-- Ends the doom of statements: removes those that nobody refers to. Whoever has come to refer to
-- one meanwhile has ended its doom (append.lua), and another erase has doomed it anew, by a token of
-- its own (purge.lua): both leave nothing to do here.
--
-- KEYS: meta, text, erased. ARGV: epoch, then of each statement its digest, the token that it was
-- doomed by, and whether to remove it (1). Answers how many were removed.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
if redis.call('HEXISTS', KEYS[2], '.') == 0 then return redis.error_reply('LOST ' .. KEYS[2]) end
local removed = 0
for n = 2, #ARGV, 3 do
  if redis.call('HGET', KEYS[3], ARGV[n]) == ARGV[n + 1] then
    -- The words before the mark: cut short in between, they are looked for once more, no harm.
    if ARGV[n + 2] == '1' then removed = removed + redis.call('HDEL', KEYS[2], ARGV[n]) end
    redis.call('HDEL', KEYS[3], ARGV[n])
  end
end
return removed
