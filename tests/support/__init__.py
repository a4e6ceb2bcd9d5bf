"""What several tests share: tiny pipelines, samplers, the commands in processes of their own."""
