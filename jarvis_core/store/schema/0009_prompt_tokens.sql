-- How many tokens the model has read; 0 where its server did not say.
alter table turns add column prompt_tokens integer not null default 0;
