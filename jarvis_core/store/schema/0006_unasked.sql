-- A turn without a user's message: the assistant begins, or goes on by itself.
alter table turns alter column user_message_id drop not null;
