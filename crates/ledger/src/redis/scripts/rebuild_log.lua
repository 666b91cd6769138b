-- Copies the log into another key without what does not belong to the ledger, part by part, and
-- puts the copy in its place once it is whole.
--
-- Why not XDEL: a stream remembers the largest id that was deleted, and Redis 8 and Valkey refuse
-- to set its last id below that one (XSETID), so that the ledger's next revisions are refused for
-- ever. A stream that never held the stray entries has no such memory. RENAME is atomic: followers
-- see the old log or the new one.
--
-- KEYS: meta, log, copy. ARGV: epoch, the ledger's revision, the last revision to keep, most entries.
-- Answers 1 where the log was replaced, 0 where there is more to copy: call it again.

local meta, log, copy = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', meta, 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
-- A recorder has appended meanwhile: what is to be kept has to be looked at again.
if known[2] ~= ARGV[2] then return redis.error_reply('BEHIND the ledger has moved on') end

local last = redis.call('XREVRANGE', copy, '+', '-', 'COUNT', 1)[1]
local from = last and '(' .. last[1] or '-'
local most, copied, entries = tonumber(ARGV[4]), 0, nil
repeat
  entries = redis.call('XRANGE', log, from, ARGV[3], 'COUNT', most)
  for _, entry in ipairs(entries) do
    -- The ledger's own ids are revisions, and end in -0.
    if string.match(entry[1], '^%d+%-0$') then
      redis.call('XADD', copy, entry[1], unpack(entry[2]))
      copied = copied + 1
    end
    from = '(' .. entry[1]
  end
until copied > 0 or #entries < most
if #entries == most then return 0 end
if redis.call('EXISTS', copy) == 0 then
  -- A log without entries, before whose end there is room for the first.
  redis.call('XADD', copy, '0-1', 'p', '')
  redis.call('XDEL', copy, '0-1')
end
redis.call('RENAME', copy, log)
return 1
