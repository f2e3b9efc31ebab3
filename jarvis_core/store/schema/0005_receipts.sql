-- How long the parts of a turn took, in milliseconds; what was not measured is left out.
alter table turns add column receipt jsonb;
