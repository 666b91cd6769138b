-- Compares pairs' records with those that changes started from, and writes the changes that did.
--
-- Why this order, though Redis does not roll a script back that fails half-way (a key of the wrong
-- type, an ACL that forbids one command):
--   1. Everything is read and compared first: what cannot be read fails before anything is written.
--   2. Texts and history entries come before the log. Alone they do no harm: a text is found by
--      its digest alone, and a history entry beyond its record's length is not read, and is
--      written over by the next change of that pair, which begins at the same place.
--   3. Then the log's entry, which holds all that the pair's bucket gets. From here on the change
--      is never lost: the log is ahead of `rev`, the next append sees that and does nothing but
--      say so (BEHIND), and roll.lua writes the bucket again from the log's entry.
--   4. Then the bucket, and at the end `rev` and `head`, once. Until then no reader is told of any
--      of it: polls end at `rev`, and a bucket's readers reject what is newer than `rev`.
--   5. What is announced is durable, so the announcement is last; where it is forbidden, that is no
--      reason to fail: followers find the entries by their polls.
--
-- A key that was deleted or evicted is never made anew here. A bucket, its histories and the texts
-- are whole only while their sentinel field `.` is there: a change that needs one without it is
-- answered, and not made. The log is whole while there is such a key, however empty it is, and so is
-- the fence: without it no follower can prove to be current, so that nothing is acknowledged.
--
-- KEYS: meta, log, text, fence, erased, then each bucket's pairs and histories that are needed.
-- ARGV: epoch, channel, most log entries, number of texts, number of changes, whether this is a
-- repair, which writes to buckets that were lost (1); digest and text of each text; then for each
-- change: number of its bucket's key in KEYS, pair's key, the base's version, the log entry's body
-- (empty: compare only), its place, number of history entries (-1: nothing of its history is to be
-- left, which purge.lua sees to), and field and item of each.
-- Answers {receivers, outcome, ...}: the new revision and the first 8 bytes of the log's hash after
-- it, which together name the change on this branch of the log alone; 0 where the pair is unchanged
-- and was only compared; the pair's value in the bucket where that is another one, false where there
-- is none; -1 where its bucket was lost, -2 where its bucket's histories were.

local meta, log, text, erased = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local pack = struct.pack

local known = redis.call('HMGET', meta, 'epoch', 'rev', 'head')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local rev, head = tonumber(known[2]), known[3]
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if last and tonumber(string.match(last[1], '^%d+')) > rev then
  return redis.error_reply('BEHIND an append was cut short')
end
-- Whose ACL does not allow to ask this is told by XADD below.
if not last and redis.pcall('EXISTS', log) == 0 then return redis.error_reply('LOST ' .. log) end
if redis.pcall('EXISTS', KEYS[4]) == 0 then return redis.error_reply('LOST ' .. KEYS[4]) end

local function version(value)
  if value then return string.sub(value, 1, 16) end
  return string.rep('\0', 16)
end

-- 1. Compare.
local texts, count = tonumber(ARGV[4]), tonumber(ARGV[5])
local repairs = ARGV[6] == '1'
local at = 7 + 2 * texts
local starts, values, lost, histories = {}, {}, {}, {}
local fits, writes = false, false
for n = 1, count do
  starts[n] = at
  local slot = tonumber(ARGV[at])
  local found = redis.call('HMGET', KEYS[slot], '.', ARGV[at + 1])
  values[n] = found[2]
  if not found[1] and not repairs then
    lost[n] = -1
  elseif ARGV[at + 5] ~= '0' then
    if histories[slot] == nil then histories[slot] = redis.call('HEXISTS', KEYS[slot + 1], '.') end
    if histories[slot] == 0 then lost[n] = -2 end
  end
  if not lost[n] and version(values[n]) == ARGV[at + 2] then
    fits = true
    if ARGV[at + 3] ~= '' then writes = true end
  end
  at = at + 6 + 2 * math.max(0, tonumber(ARGV[at + 5]))
end

-- 2. to 4. Write.
if writes and texts > 0 and redis.call('HEXISTS', text, '.') == 0 then
  return redis.error_reply('LOST ' .. text)
end
if writes then
  for n = 1, texts do
    local digest = ARGV[5 + 2 * n]
    redis.call('HSETNX', text, digest, ARGV[6 + 2 * n])
    -- It was one's that was erased, and is somebody else's now.
    if redis.call('HGET', erased, digest) then redis.call('HDEL', erased, digest) end
  end
end
local outcomes, touched, bodies = {0}, {}, {}
local first, before = rev + 1, head
for n = 1, count do
  local s = starts[n]
  local bucket, key, base, body = ARGV[s], ARGV[s + 1], ARGV[s + 2], ARGV[s + 3]
  local bucket_key = KEYS[tonumber(bucket)]
  local value = values[n]
  -- Two callers may change one pair in one script: the second sees what the first has made.
  if touched[key] then value = redis.call('HGET', bucket_key, key) end
  if lost[n] then
    outcomes[n + 1] = lost[n]
  elseif version(value) ~= base then
    outcomes[n + 1] = value
  elseif body == '' then
    outcomes[n + 1] = 0
  else
    rev = rev + 1
    local number = pack('>I8', rev)
    local history = KEYS[tonumber(bucket) + 1]
    for h = s + 6, s + 4 + 2 * tonumber(ARGV[s + 5]), 2 do
      redis.call('HSET', history, ARGV[h], number .. ARGV[h + 1])
    end
    -- As with texts: alone it does no harm.
    local place = ARGV[s + 4]
    local _, _, from, length = struct.unpack('>I4I1I4I4', place)
    if ARGV[s + 5] == '-1' then
      redis.call('HSET', erased, key, '')
      -- The tombstone lies beside the histories too, for it has none: were its bucket lost, nobody
      -- could rebuild it.
      redis.call('HSET', history, key,
        number .. string.rep('\0', 8) .. string.sub(body, from + 1, from + length))
    end
    local hash = redis.sha1hex(head .. number .. body)
    head = pack('>I4I4I4I4I4',
      tonumber(string.sub(hash, 1, 8), 16), tonumber(string.sub(hash, 9, 16), 16),
      tonumber(string.sub(hash, 17, 24), 16), tonumber(string.sub(hash, 25, 32), 16),
      tonumber(string.sub(hash, 33, 40), 16))
    local id = string.format('%.0f-0', rev)
    if not redis.call('XADD', log, 'NOMKSTREAM', id, 'p', place, 'b', body, 'h', head) then
      return redis.error_reply('LOST ' .. log)
    end
    redis.call('HSET', bucket_key, key,
      number .. string.sub(head, 1, 8) .. string.sub(body, from + 1, from + length))
    bodies[#bodies + 1] = pack('>I4', #body)
    bodies[#bodies + 1] = body
    touched[key] = true
    outcomes[n + 1] = {rev, string.sub(head, 1, 8)}
  end
end

if rev < first then
  -- What is acknowledged as it is rests on a write of its own: a server that is no longer the
  -- primary, or lacks its replicas, refuses that.
  if fits then redis.call('HINCRBY', meta, 'noop', 1) end
  return outcomes
end
redis.call('HSET', meta, 'rev', string.format('%.0f', rev), 'head', head)
local most = tonumber(ARGV[3])
if rev > most then
  -- One more than asked for: the entry before a page's first tells the hash that it continues.
  redis.call('XTRIM', log, 'MINID', string.format('%.0f', rev - most))
end

-- 5. Announce.
local told = redis.pcall('PUBLISH', ARGV[2],
  ARGV[1] .. pack('>I8', first) .. before .. table.concat(bodies))
outcomes[1] = type(told) == 'number' and told or -1
return outcomes
