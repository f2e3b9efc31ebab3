-- Conversations, their messages, and the turns that made them.

create table conversations (
    id            uuid primary key,
    owner         text not null,
    title         text not null,
    summary       text,
    archived      boolean not null default false,
    message_count integer not null default 0,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now()
);

create index conversations_newest on conversations (owner, updated_at desc, id desc);

create table messages (
    id              uuid primary key,
    conversation_id uuid not null references conversations on delete cascade,
    -- The order in which messages were stored; clocks of several machines do not agree, this does.
    position        bigint generated always as identity,
    role            text not null check (role in ('system', 'user', 'assistant')),
    content         text not null,
    created_at      timestamptz not null default now(),
    tokens          integer,
    model           text,
    status          text not null check (status in ('completed', 'incomplete', 'cancelled'))
);

create index messages_in_order on messages (conversation_id, position);

create table turns (
    -- Also the id of the assistant's message.
    id              uuid primary key,
    conversation_id uuid not null references conversations on delete cascade,
    owner           text not null,
    user_message_id uuid not null,
    status          text not null check (status in ('running', 'completed', 'incomplete', 'cancelled', 'failed')),
    reason          text,
    error           text,
    -- While the turn runs: its text up to the last checkpoint. Afterwards the message has it.
    content         text not null default '',
    tokens          integer not null default 0,
    model           text not null default '',
    memories        uuid[] not null default '{}',
    started_at      timestamptz not null default now(),
    ended_at        timestamptz
);

create index turns_of_conversation on turns (conversation_id);
create unique index turns_one_running on turns (conversation_id) where status = 'running';
create index turns_running on turns (started_at) where status = 'running';

-- A retry with the same key joins the turn that the first try started (kept for 24 hours).
create table idempotency_keys (
    owner        text not null,
    key          text not null,
    request_hash bytea not null,
    turn_id      uuid not null,
    created_at   timestamptz not null default now(),
    primary key (owner, key)
);

create index idempotency_keys_oldest on idempotency_keys (created_at);
