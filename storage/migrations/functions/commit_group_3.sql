-- Commits a group of appends in one round trip; each append is written whole or not at all, and gets a verdict.
--
-- The arrays are tables by column: c_ conversations (each once, ordered by id), a_ appends, m_ their new messages, e_ their
-- events. a_conversation is an index into c_, m_append and e_append are indexes into a_. `extras` holds what most appends
-- do not have, each kind under its name and only where there is any: keys, agents and messages that must exist, changes of
-- messages and of conversations, deltas, states of runs. In payloads the character 1 stands for the event's seq and the
-- character 2 for its message's position.
--
-- What is the same in every row comes once: a column with one element has that one for all rows. (Ids, payloads, contents
-- and their lengths and hashes are never shared; those of messages and of events that are there for every row tell how many
-- rows there are.) An empty column is null in every row, but for three, which then say what another one does: m_event what
-- m_rank says, e_rank what e_offset says, and e_message_id what m_id says, for the events are those of the messages.
--
-- A message that streams has a row in streaming_messages, whose last_seq is then the one that a change expects: deltas are
-- counted there, and nowhere else. What commit_group_1 does not know it leaves behind: a row of a message that streams no
-- more, which counts for nothing.
--
-- Everything is read by a statement that starts after the conversations' rows are locked: under READ COMMITTED an earlier
-- snapshot would not know what the previous holder of the lock wrote. With the verdicts comes the epoch of the log's
-- timeline to which the seqs belong.
CREATE FUNCTION commit_group_3(
    patient boolean,
    c_id uuid[], c_tenant text[],
    a_conversation int[], a_events int[], a_messages int[], a_at timestamptz[],
    m_append int[], m_rank int[], m_event int[], m_id uuid[], m_role text[], m_agent_id text[], m_content text[],
    m_status text[], m_reply_to uuid[], m_model text[], m_tool_calls text[], m_usage text[], m_metadata text[],
    m_length bigint[], m_sha256 text[],
    e_append int[], e_rank int[], e_offset int[], e_kind text[], e_message_id uuid[], e_payload text[],
    extras jsonb
) RETURNS TABLE (verdict text, seq bigint, "position" bigint, detail jsonb, epoch text)
LANGUAGE plpgsql
SET lock_timeout = '3s'
AS $$
#variable_conflict use_column
DECLARE
    n constant int := cardinality(a_conversation);
    heads bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(c_id)]);
    counts bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(c_id)]);
    alive boolean[] := array_fill(false, ARRAY[cardinality(c_id)]);
    busy boolean[] := array_fill(false, ARRAY[cardinality(c_id)]);
    last_at timestamptz[] := array_fill(NULL::timestamptz, ARRAY[cardinality(c_id)]);
    verdicts text[] := array_fill(NULL::text, ARRAY[n]);
    details jsonb[] := array_fill(NULL::jsonb, ARRAY[n]);
    seqs bigint[] := array_fill(NULL::bigint, ARRAY[n]);
    positions bigint[] := array_fill(NULL::bigint, ARRAY[n]);
    every_append constant int := CASE WHEN cardinality(m_append) = 1 THEN m_append[1] END;
    every_rank constant int := CASE WHEN cardinality(m_rank) = 1 THEN m_rank[1] END;
    every_event constant int := CASE WHEN cardinality(m_event) = 1 THEN m_event[1] END;
    every_role constant text := CASE WHEN cardinality(m_role) = 1 THEN m_role[1] END;
    every_agent_id constant text := CASE WHEN cardinality(m_agent_id) = 1 THEN m_agent_id[1] END;
    every_status constant text := CASE WHEN cardinality(m_status) = 1 THEN m_status[1] END;
    every_model constant text := CASE WHEN cardinality(m_model) = 1 THEN m_model[1] END;
    every_tool_calls constant text := CASE WHEN cardinality(m_tool_calls) = 1 THEN m_tool_calls[1] END;
    every_usage constant text := CASE WHEN cardinality(m_usage) = 1 THEN m_usage[1] END;
    every_metadata constant text := CASE WHEN cardinality(m_metadata) = 1 THEN m_metadata[1] END;
    every_event_append constant int := CASE WHEN cardinality(e_append) = 1 THEN e_append[1] END;
    every_event_rank constant int := CASE WHEN cardinality(e_rank) = 1 THEN e_rank[1] END;
    every_offset constant int := CASE WHEN cardinality(e_offset) = 1 THEN e_offset[1] END;
    every_kind constant text := CASE WHEN cardinality(e_kind) = 1 THEN e_kind[1] END;
    message_ids constant uuid[] := CASE WHEN cardinality(e_message_id) = 0 THEN m_id ELSE e_message_id END;
    r record;
    c int;
BEGIN
    -- Acknowledged is durable, whatever the server's default is. It ends with the transaction.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;

    -- 1. Lock the conversations, in the order of their ids. An impatient group passes over what another holds.
    IF patient THEN
        FOR r IN
            SELECT u.ordinal, v.last_seq, v.message_count, v.deleted_at, v.tenant
            FROM unnest(c_id) WITH ORDINALITY AS u (id, ordinal) JOIN conversations v ON v.id = u.id
            ORDER BY v.id FOR UPDATE OF v
        LOOP
            heads[r.ordinal] := r.last_seq;
            counts[r.ordinal] := r.message_count;
            alive[r.ordinal] := r.deleted_at IS NULL AND r.tenant = c_tenant[r.ordinal];
        END LOOP;
    ELSE
        FOR r IN
            SELECT u.ordinal, v.last_seq, v.message_count, v.deleted_at, v.tenant
            FROM unnest(c_id) WITH ORDINALITY AS u (id, ordinal) JOIN conversations v ON v.id = u.id
            ORDER BY v.id FOR UPDATE OF v SKIP LOCKED
        LOOP
            heads[r.ordinal] := r.last_seq;
            counts[r.ordinal] := r.message_count;
            alive[r.ordinal] := r.deleted_at IS NULL AND r.tenant = c_tenant[r.ordinal];
        END LOOP;
        FOR i IN 1..cardinality(c_id) LOOP
            IF heads[i] IS NULL THEN
                busy[i] := EXISTS (SELECT 1 FROM conversations v WHERE v.id = c_id[i]);
            END IF;
        END LOOP;
    END IF;

    -- 2. Verdicts. A key that was used answers before anything else: its conversation may be gone by now.
    FOR i IN 1..n LOOP
        IF busy[a_conversation[i]] THEN
            verdicts[i] := 'busy';
        END IF;
    END LOOP;
    IF extras ? 'keys' THEN
        FOR r IN
            SELECT k.append, k.lines_before, k.fingerprint AS asked,
                   i.fingerprint, i.status, i.answer, i.seq, i.position, i.lines, i.running_hash, i.last_position
            FROM jsonb_to_recordset(extras -> 'keys') AS k (
                append int, tenant text, principal text, route text, key text, fingerprint text, lines_before bigint
            )
            LEFT JOIN idempotency_keys i ON i.tenant = k.tenant AND i.principal = k.principal AND i.route = k.route
                AND i.key = k.key AND i.created_at > a_at[k.append] - interval '24 hours'
        LOOP
            CONTINUE WHEN verdicts[r.append] IS NOT NULL;
            IF r.fingerprint IS NULL THEN
                IF r.lines_before > 0 THEN
                    verdicts[r.append] := 'moved';  -- the key has expired: nothing is stored under it
                    details[r.append] := jsonb_build_object(
                        'lines', 0, 'running_hash', '', 'seq', 0, 'position', 0, 'last_position', 0);
                END IF;
            ELSIF r.fingerprint <> r.asked THEN
                verdicts[r.append] := 'key_reused';
            ELSIF r.lines_before IS NULL THEN
                verdicts[r.append] := 'seen';
                details[r.append] := jsonb_build_object(
                    'status', r.status, 'answer', r.answer, 'seq', r.seq, 'position', r.position);
            ELSIF r.lines <> r.lines_before THEN
                verdicts[r.append] := 'moved';
                details[r.append] := jsonb_build_object(
                    'lines', r.lines, 'running_hash', r.running_hash, 'seq', r.seq, 'position', r.position,
                    'last_position', r.last_position);
            END IF;
        END LOOP;
    END IF;
    FOR i IN 1..n LOOP
        IF verdicts[i] IS NULL AND NOT alive[a_conversation[i]] THEN
            verdicts[i] := 'missing';
        END IF;
    END LOOP;
    IF extras ? 'agents' THEN
        FOR r IN
            SELECT g.append, g.agent_id
            FROM jsonb_to_recordset(extras -> 'agents') AS g (append int, agent_id text, shipped boolean)
            LEFT JOIN agents a ON a.tenant = c_tenant[a_conversation[g.append]] AND a.id = g.agent_id
            WHERE NOT coalesce(NOT a.hidden, g.shipped)
        LOOP
            IF verdicts[r.append] IS NULL THEN
                verdicts[r.append] := 'unknown_agent';
                details[r.append] := to_jsonb(r.agent_id);
            END IF;
        END LOOP;
    END IF;
    IF extras ? 'replies' THEN
        FOR r IN
            SELECT g.append, g.message_id
            FROM jsonb_to_recordset(extras -> 'replies') AS g (append int, message_id uuid)
            -- As a join it would be planned for the table's size at that time: for a small one, as a scan of all of it.
            WHERE (
                SELECT m.conversation_id FROM messages m
                WHERE m.tenant = c_tenant[a_conversation[g.append]] AND m.id = g.message_id
            ) IS DISTINCT FROM c_id[a_conversation[g.append]]
        LOOP
            IF verdicts[r.append] IS NULL THEN
                verdicts[r.append] := 'unknown_reply';
                details[r.append] := to_jsonb(r.message_id);
            END IF;
        END LOOP;
    END IF;
    IF extras ? 'changes' THEN
        FOR r IN
            SELECT g.append
            FROM jsonb_to_recordset(extras -> 'changes') AS g (append int, message_id uuid, expected bigint)
            WHERE NOT EXISTS (
                SELECT 1 FROM messages m
                LEFT JOIN streaming_messages s ON s.conversation_id = m.conversation_id AND s.message_id = m.id
                    AND m.status = 'streaming'
                WHERE m.tenant = c_tenant[a_conversation[g.append]] AND m.id = g.message_id
                    AND coalesce(s.last_seq, m.last_seq) = g.expected
            )
        LOOP
            verdicts[r.append] := coalesce(verdicts[r.append], 'stale');
        END LOOP;
    END IF;
    IF extras ? 'deltas' THEN
        FOR r IN
            SELECT g.append
            FROM jsonb_to_recordset(extras -> 'deltas') AS g (append int, message_id uuid, "offset" bigint)
            WHERE NOT EXISTS (
                SELECT 1 FROM streaming_messages s JOIN messages m ON m.tenant = s.tenant AND m.id = s.message_id
                WHERE s.conversation_id = c_id[a_conversation[g.append]] AND s.message_id = g.message_id
                    AND s.tenant = c_tenant[a_conversation[g.append]] AND s.length = g."offset"
                    AND m.status = 'streaming'
            )
        LOOP
            verdicts[r.append] := coalesce(verdicts[r.append], 'stale');
        END LOOP;
    END IF;
    IF extras ? 'conversations' THEN
        FOR r IN
            SELECT g.append
            FROM jsonb_to_recordset(extras -> 'conversations') AS g (append int, expected bigint)
            WHERE NOT EXISTS (
                SELECT 1 FROM conversations v
                WHERE v.id = c_id[a_conversation[g.append]] AND v.state_seq = g.expected
            )
        LOOP
            verdicts[r.append] := coalesce(verdicts[r.append], 'stale');
        END LOOP;
    END IF;
    IF extras ? 'keys' THEN
        -- The keys of what is accepted so far, in their own order. A row that another transaction has just inserted is
        -- waited for here, and is a reason to look again.
        FOR r IN SELECT * FROM jsonb_to_recordset(extras -> 'keys') AS k (
            append int, tenant text, principal text, route text, key text, fingerprint text,
            lines_before bigint, lines bigint, running_hash text, status int, answer text
        ) LOOP
            CONTINUE WHEN verdicts[r.append] IS NOT NULL;
            IF coalesce(r.lines_before, 0) = 0 THEN
                INSERT INTO idempotency_keys AS i (
                    tenant, principal, route, key, fingerprint, status, answer, seq, position, lines, running_hash,
                    last_position, created_at
                ) VALUES (
                    r.tenant, r.principal, r.route, r.key, r.fingerprint, r.status, r.answer, 0, 0, r.lines,
                    r.running_hash, 0, a_at[r.append]
                ) ON CONFLICT ON CONSTRAINT pk_idempotency_keys DO UPDATE SET
                    fingerprint = excluded.fingerprint, status = excluded.status, answer = excluded.answer,
                    lines = excluded.lines, running_hash = excluded.running_hash, created_at = excluded.created_at
                    WHERE i.created_at <= excluded.created_at - interval '24 hours';
            ELSE
                UPDATE idempotency_keys i SET lines = r.lines, running_hash = r.running_hash
                WHERE i.tenant = r.tenant AND i.principal = r.principal AND i.route = r.route AND i.key = r.key
                    AND i.lines = r.lines_before;
            END IF;
            IF NOT FOUND THEN
                verdicts[r.append] := 'again';
            END IF;
        END LOOP;
    END IF;

    -- 3. Seqs and positions, in the order in which the appends came.
    FOR i IN 1..n LOOP
        IF verdicts[i] IS NULL THEN
            c := a_conversation[i];
            seqs[i] := heads[c] + 1;
            positions[i] := counts[c] + 1;
            heads[c] := heads[c] + a_events[i];
            counts[c] := counts[c] + a_messages[i];
            last_at[c] := a_at[i];
        END IF;
    END LOOP;

    -- 4. Write. One `unnest` with all of the arrays would keep a copy of each of them for the length of the statement:
    -- where each stands for itself they are read in step, and a tenth faster.
    INSERT INTO messages (
        tenant, id, conversation_id, position, role, agent_id, content, status, reply_to, model, tool_calls, usage,
        metadata, length, sha256, created_at, updated_at, last_seq
    )
    SELECT c_tenant[a_conversation[m.append]], m.id, c_id[a_conversation[m.append]], positions[m.append] + m.rank, m.role,
           m.agent_id, m.content, m.status, m.reply_to, m.model, m.tool_calls, m.usage, m.metadata, m.length, m.sha256,
           a_at[m.append], a_at[m.append], seqs[m.append] + m.event
    FROM (
        SELECT coalesce(u.append, every_append) AS append, coalesce(u.rank, every_rank) AS rank,
               coalesce(u.event, every_event, u.rank, every_rank) AS event, u.id, coalesce(u.role, every_role) AS role,
               coalesce(u.agent_id, every_agent_id) AS agent_id, u.content, coalesce(u.status, every_status) AS status,
               u.reply_to, coalesce(u.model, every_model) AS model,
               coalesce(u.tool_calls, every_tool_calls) AS tool_calls, coalesce(u.usage, every_usage) AS usage,
               coalesce(u.metadata, every_metadata) AS metadata, u.length, u.sha256
        FROM (
            SELECT unnest(m_append) AS append, unnest(m_rank) AS rank, unnest(m_event) AS event, unnest(m_id) AS id,
                   unnest(m_role) AS role, unnest(m_agent_id) AS agent_id, unnest(m_content) AS content,
                   unnest(m_status) AS status, unnest(m_reply_to) AS reply_to, unnest(m_model) AS model,
                   unnest(m_tool_calls) AS tool_calls, unnest(m_usage) AS usage, unnest(m_metadata) AS metadata,
                   unnest(m_length) AS length, unnest(m_sha256) AS sha256
        ) AS u
    ) AS m
    WHERE seqs[m.append] IS NOT NULL;

    IF 'streaming' = ANY (m_status) THEN
        INSERT INTO streaming_messages (conversation_id, message_id, tenant, created_seq, last_seq, length)
        SELECT c_id[a_conversation[m.append]], m.id, c_tenant[a_conversation[m.append]], seqs[m.append] + m.event,
               seqs[m.append] + m.event, 0
        FROM (
            SELECT coalesce(u.append, every_append) AS append, u.id, coalesce(u.status, every_status) AS status,
                   coalesce(u.event, every_event, u.rank, every_rank) AS event
            FROM unnest(m_append, m_rank, m_event, m_id, m_status) AS u (append, rank, event, id, status)
        ) AS m
        WHERE seqs[m.append] IS NOT NULL AND m.status = 'streaming';
    END IF;

    IF extras ? 'deltas' THEN
        UPDATE streaming_messages s SET length = s.length + g.units, last_seq = seqs[g.append]
        FROM jsonb_to_recordset(extras -> 'deltas') AS g (append int, message_id uuid, units bigint)
        WHERE seqs[g.append] IS NOT NULL AND s.conversation_id = c_id[a_conversation[g.append]]
            AND s.message_id = g.message_id;
    END IF;

    IF extras ? 'changes' THEN
        -- Before the new events are there: only the earlier ones become tombstones.
        UPDATE events e SET kind = 'message.deleted', payload = g.tombstone
        FROM jsonb_to_recordset(extras -> 'changes') AS g (append int, message_id uuid, tombstone text)
        WHERE seqs[g.append] IS NOT NULL AND g.tombstone IS NOT NULL AND e.message_id = g.message_id;

        UPDATE messages m SET content = CASE WHEN g.status = 'streaming' THEN m.content ELSE g.content END,
            status = g.status, model = g.model, tool_calls = g.tool_calls, usage = g.usage, metadata = g.metadata,
            length = g.length, sha256 = g.sha256,
            updated_at = CASE WHEN g.status = 'streaming' THEN m.updated_at ELSE a_at[g.append] END,
            last_seq = seqs[g.append]
        FROM jsonb_to_recordset(extras -> 'changes') AS g (
            append int, message_id uuid, content text, status text, model text, tool_calls text, usage text,
            metadata text, length bigint, sha256 text
        )
        WHERE seqs[g.append] IS NOT NULL AND m.tenant = c_tenant[a_conversation[g.append]] AND m.id = g.message_id;

        UPDATE streaming_messages s SET last_seq = seqs[g.append]
        FROM jsonb_to_recordset(extras -> 'changes') AS g (append int, message_id uuid, status text)
        WHERE seqs[g.append] IS NOT NULL AND g.status = 'streaming'
            AND s.conversation_id = c_id[a_conversation[g.append]] AND s.message_id = g.message_id;

        DELETE FROM streaming_messages s
        USING jsonb_to_recordset(extras -> 'changes') AS g (append int, message_id uuid, status text)
        WHERE seqs[g.append] IS NOT NULL AND g.status <> 'streaming'
            AND s.conversation_id = c_id[a_conversation[g.append]] AND s.message_id = g.message_id;
    END IF;

    IF extras ? 'conversations' THEN
        UPDATE conversations v SET title = g.title, metadata = g.metadata, state_seq = seqs[g.append],
            updated_at = a_at[g.append], last_activity_at = a_at[g.append],
            deleted_at = CASE WHEN g.deleted THEN a_at[g.append] END
        FROM jsonb_to_recordset(extras -> 'conversations') AS g (
            append int, title text, metadata text, deleted boolean
        )
        WHERE seqs[g.append] IS NOT NULL AND v.id = c_id[a_conversation[g.append]];
    END IF;

    IF extras ? 'runs' THEN
        INSERT INTO runs (
            tenant, id, conversation_id, agent_id, state, message_id, attempt, error, created_at, started_at, ended_at,
            last_seq
        )
        SELECT c_tenant[a_conversation[g.append]], g.id, c_id[a_conversation[g.append]], g.agent_id, g.state,
               g.message_id, g.attempt, g.error, g.created_at, g.started_at, g.ended_at, seqs[g.append]
        FROM jsonb_to_recordset(extras -> 'runs') AS g (
            append int, id uuid, agent_id text, state text, message_id uuid, attempt int, error text,
            created_at timestamptz, started_at timestamptz, ended_at timestamptz
        )
        WHERE seqs[g.append] IS NOT NULL
        ON CONFLICT ON CONSTRAINT pk_runs DO UPDATE SET
            agent_id = excluded.agent_id, state = excluded.state, message_id = excluded.message_id,
            attempt = excluded.attempt, error = excluded.error, created_at = excluded.created_at,
            started_at = excluded.started_at, ended_at = excluded.ended_at, last_seq = excluded.last_seq;
    END IF;

    IF extras ? 'keys' THEN
        UPDATE idempotency_keys i SET
            seq = CASE WHEN k.lines IS NULL THEN seqs[k.append] ELSE seqs[k.append] + a_events[k.append] - 1 END,
            position = CASE WHEN coalesce(k.lines_before, 0) = 0 THEN positions[k.append] ELSE i.position END,
            last_position = positions[k.append] + a_messages[k.append] - 1
        FROM jsonb_to_recordset(extras -> 'keys') AS k (
            append int, tenant text, principal text, route text, key text, lines_before bigint, lines bigint
        )
        WHERE seqs[k.append] IS NOT NULL AND i.tenant = k.tenant AND i.principal = k.principal AND i.route = k.route
            AND i.key = k.key;
    END IF;

    INSERT INTO events (conversation_id, seq, tenant, kind, message_id, payload, at)
    SELECT c_id[a_conversation[e.append]], seqs[e.append] + e.place, c_tenant[a_conversation[e.append]], e.kind,
           e.message_id,
           replace(replace(e.payload, chr(1), (seqs[e.append] + e.place)::text), chr(2),
                   (positions[e.append] + e.rank)::text),
           a_at[e.append]
    FROM (
        SELECT coalesce(u.append, every_event_append) AS append, coalesce(u.place, every_offset) AS place,
               coalesce(u.rank, every_event_rank, u.place, every_offset) AS rank, coalesce(u.kind, every_kind) AS kind,
               u.message_id, u.payload
        FROM (
            SELECT unnest(e_append) AS append, unnest(e_rank) AS rank, unnest(e_offset) AS place,
                   unnest(e_kind) AS kind, unnest(message_ids) AS message_id, unnest(e_payload) AS payload
        ) AS u
    ) AS e
    WHERE seqs[e.append] IS NOT NULL;

    -- The time of the last activity is indexed: rewritten with every append it would cost each a new index entry.
    UPDATE conversations v SET last_seq = heads[u.ordinal], message_count = counts[u.ordinal],
        last_activity_at = CASE
            WHEN last_at[u.ordinal] >= v.last_activity_at + interval '1 second' THEN last_at[u.ordinal]
            ELSE v.last_activity_at
        END
    FROM unnest(c_id) WITH ORDINALITY AS u (id, ordinal)
    WHERE v.id = u.id AND last_at[u.ordinal] IS NOT NULL;

    RETURN QUERY SELECT u.*, t.epoch FROM unnest(verdicts, seqs, positions, details) AS u, timeline t;
END
$$
