-- What was heard of an answer that was spoken and interrupted. Its content is what was heard; the rest stands apart.
alter table messages
    add column heard_ms integer,
    add column heard_told boolean not null default false,
    add column unheard text not null default '';
