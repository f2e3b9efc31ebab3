-- Memory: what users want remembered, and the words by which it is found. The vectors' table is made by
-- store/memory_vectors.py where pgvector is there, which a server may get long after this migration.

create table memory_owners (
    key     integer generated always as identity primary key,
    owner   text not null unique,
    -- Of those that stand, and all their terms together. Whoever writes an entry locks this row first, so that an
    -- owner's entries, words and counts always agree.
    entries integer not null default 0,
    terms   bigint not null default 0
);

create table memories (
    seq           integer generated always as identity primary key,
    id            uuid not null unique,
    owner_key     integer not null references memory_owners,
    content       text not null,
    importance    double precision not null check (importance between 0 and 1),
    source        text,
    -- Of the same words; of what may say the same if the vectors do (folding.py).
    fingerprint   bytea not null,
    gist          bytea not null,
    -- The keys of its words, and how many terms it has.
    words         integer[] not null,
    terms         integer not null,
    embedded      boolean not null default false,
    -- Until then somebody is asking for its vector.
    claimed_until timestamptz,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    -- A superseded entry is kept for the record of the one that replaced it, and goes with that one.
    superseded_by uuid references memories (id) on delete cascade
);

create unique index memories_once on memories (owner_key, fingerprint) where superseded_by is null;
create index memories_gist on memories (owner_key, gist) where superseded_by is null;
create index memories_newest on memories (owner_key, created_at desc, id desc) where superseded_by is null;
create index memories_superseded on memories (superseded_by) where superseded_by is not null;
create index memories_unembedded on memories (claimed_until nulls first, seq) where not embedded and superseded_by is null;

-- The terms of each owner, and in how many entries they stand: PostgreSQL's own full text knows no word's rarity.
create table memory_words (
    key       integer generated always as identity primary key,
    owner_key integer not null,
    term      text collate "C" not null,
    -- Hashes of the owner with what the term shares with its misspellings: an index that leads to this owner's words only.
    sounds    integer[] not null,
    entries   integer not null,
    unique (owner_key, term)
) with (fillfactor = 85);

create index memory_words_sounds on memory_words using gin (sounds) with (fastupdate = off) where sounds <> '{}';

create table memory_postings (
    word   integer not null,
    memory integer not null,
    -- How often the term stands in the entry, and how many terms that has.
    times  smallint not null,
    length smallint not null,
    primary key (word, memory) include (times, length)
    -- Read from the index alone, which needs the visibility map to be up to date.
) with (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 10000);

create table memory_models (
    key       integer generated always as identity primary key,
    name      text not null,
    dimension integer not null,
    -- How near texts are that have nothing to do with one another: of a question and an entry, mean and deviation.
    mean      real,
    spread    real,
    unique (name, dimension)
);
