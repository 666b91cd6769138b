-- Garbage collection of statements: deletes marked statements that no history refers to, and clears their
-- deletion marks. An append that refers to a statement clears its mark (append.lua), and another erase
-- replaces the mark by one with its own token (erase_history.lua): in both cases the mark no longer matches
-- and nothing is done here.
--
-- KEYS: meta, text, erased. ARGV: epoch, then for each statement its digest, the token of its mark, and 1
-- if it is to be deleted. Returns the number of deleted statements.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
if redis.call('HEXISTS', KEYS[2], '.') == 0 then return redis.error_reply('LOST ' .. KEYS[2]) end
local removed = 0
for n = 2, #ARGV, 3 do
  if redis.call('HGET', KEYS[3], ARGV[n]) == ARGV[n + 1] then
    -- The statement is deleted before its mark: a failure in between only repeats the collection.
    if ARGV[n + 2] == '1' then removed = removed + redis.call('HDEL', KEYS[2], ARGV[n]) end
    redis.call('HDEL', KEYS[3], ARGV[n])
  end
end
return removed
