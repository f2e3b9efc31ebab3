-- Calls of tools and their outputs, as messages of the conversation. A call is stored before it is made, its output before the
-- model sees it.
alter table messages
    add column type       text not null default 'message',
    -- Of a call and of its output; the content is the call's arguments, or the output.
    add column turn_id    uuid,
    add column call_id    text,
    add column name       text,
    -- Of a call: whose tool it is ('' the client's), in which answer of the model, behind how much of the turn's text,
    -- whether somebody was asked to allow it, what became of it, and how long that took.
    add column server     text,
    add column round      smallint,
    add column text_at    integer,
    add column asked      boolean,
    add column outcome    text,
    add column elapsed_ms integer;

create unique index messages_of_calls on messages (turn_id, call_id, type) where turn_id is not null;

-- What a turn that waits for its client was asked, so that it can go on.
alter table turns add column request text;
