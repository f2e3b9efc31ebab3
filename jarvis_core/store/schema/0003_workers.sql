-- Who runs which turn, where several processes share this database.

create table workers (
    id      uuid primary key,
    -- Of the process: the machine that can tell whether it lives, its pid there, and when it was started, in ticks.
    machine text not null,
    pid     integer not null,
    started bigint not null,
    -- By this server's clock: each worker says every second that it lives.
    seen_at timestamptz not null default now()
);

-- Who began it; nobody where an older version did.
alter table turns add column worker uuid;

drop index turns_running;
create index turns_of_worker on turns (worker) where status = 'running';
